"""From the nodes' sums to a step of the model."""
