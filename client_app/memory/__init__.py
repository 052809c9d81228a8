"""What users remember, and by what it is chosen."""
