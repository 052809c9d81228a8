"""`feddmmr runs`: list, show, verify, compare and report."""
