"""The write pass of training, with gradient checkpointing for histories that are read in segments."""
