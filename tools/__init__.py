"""Offline commands: data import, baselines and the launcher of runs."""
