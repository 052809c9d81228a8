"""`feddmmr audit`: attacks on a finished run."""
