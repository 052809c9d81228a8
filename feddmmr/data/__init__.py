"""`feddmmr data`: import, split, demo and info."""
