"""`feddmmr runs`: list, show, verify, compare, report and export."""
