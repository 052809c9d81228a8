"""What `benchmarks/speed.py` times: the plain loop and the engine, Flower, and a stock app."""
