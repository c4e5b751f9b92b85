"""Adapters as files: read, write, convert, grow and publish them, and load models with them."""
