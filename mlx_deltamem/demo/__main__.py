from mlx_deltamem.demo import main

main()
