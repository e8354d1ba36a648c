"""The packet path inside the kernel."""
