"""Who takes part: nodes that come, stay and leave."""
