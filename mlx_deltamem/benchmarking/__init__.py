"""What `mlx_deltamem.benchmark` measures, and how."""
