"""What the two apps share: model, configuration, seeds, metrics and messages."""
