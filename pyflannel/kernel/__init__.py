"""The one room that talks to the kernel."""
