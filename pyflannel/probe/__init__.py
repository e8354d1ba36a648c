"""Probes of the peers: when they are sent, what their answers mean, and the thin edge to ICMP."""
