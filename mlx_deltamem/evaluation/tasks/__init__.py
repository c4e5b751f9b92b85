"""The tasks of `mlx_deltamem.evaluate`: their questions, and how replies are scored. `registry.py` lists them."""
