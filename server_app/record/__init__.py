"""What a run keeps and shows: manifest, checkpoints, report."""
