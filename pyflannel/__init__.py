"""pyflannel: a flannel node agent for Linux."""

__version__ = "0.1.0"
