"""The processes of one command that MLX has started on several machines: their ranks, and the messages between them."""
