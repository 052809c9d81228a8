"""Local training of a node's participants."""
