"""How packets reach other nodes."""
