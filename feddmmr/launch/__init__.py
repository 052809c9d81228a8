"""`feddmmr run` and `federation`, and the app in process."""
