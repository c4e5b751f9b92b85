"""Training an adapter: data, episodes, batches, the loss, the run and its checkpoints."""
