"""Rounds: the loop, Flower's four hooks, what is exchanged and logged."""
