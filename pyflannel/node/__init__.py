"""The chores of a running node, one task each; `daemon.py` composes them."""
