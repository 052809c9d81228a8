"""`feddmmr recommend`: what to watch next, and why."""
