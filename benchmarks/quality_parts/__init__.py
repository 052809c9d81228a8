"""What `benchmarks/quality.py` prints."""
