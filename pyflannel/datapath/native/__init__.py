"""The packet path in C threads."""
