"""`feddmmr features`: encode, import and analyze."""
