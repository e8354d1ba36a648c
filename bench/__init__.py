"""Benchmarks of pyflannel against upstream's flannel and the kernel's overlays; see README.md."""
