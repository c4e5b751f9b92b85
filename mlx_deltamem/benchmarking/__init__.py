"""Benchmarks of the cost of a memory: `mlx_deltamem.benchmark`."""
