"""Run `python -m mlx_deltamem COMMAND ...`."""

from mlx_deltamem.cli.main import main

main()
