"""What speed.py times: the plain loop, the engine, Flower, a stock app; a run for catalogue.py."""
