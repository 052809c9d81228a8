"""The memory of a user, as a function of its history."""
