from mlx_deltamem.cli import main

main()
