"""Read and write the `.pt` files of the reference without torch."""
