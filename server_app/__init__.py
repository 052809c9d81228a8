"""The federated server: strategy, round loop, checkpoints and manifest."""
