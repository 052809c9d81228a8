"""Scores of a node's users, as sums."""
