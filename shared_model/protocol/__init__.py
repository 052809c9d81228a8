"""What server and nodes agree on: settings, plans, messages, metrics."""
