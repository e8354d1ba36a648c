"""Micro-benchmarks of the pure functions that are called per packet, per lease or per start."""
