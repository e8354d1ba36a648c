"""Masquerade and forward rules in the firewall."""
