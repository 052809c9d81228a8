"""The command `feddmmr`: everything that is done offline, and the launcher of runs."""
