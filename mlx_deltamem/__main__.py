from mlx_deltamem.cli.main import main

main()
