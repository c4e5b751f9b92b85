from mlx_deltamem.data import main

main()
