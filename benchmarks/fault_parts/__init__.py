"""What the faults benchmark does to nodes, and the stock app beside it."""
