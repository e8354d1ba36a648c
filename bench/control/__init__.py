"""Benchmarks of the daemon itself: start-up, leases, memory, CPU at rest."""
