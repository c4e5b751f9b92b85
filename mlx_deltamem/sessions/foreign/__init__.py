"""Chats in the formats of other implementations: the PyTorch reference, and the other MLX port.

A memory with a key shift (`DeltaMemConfig.key_shift`) cannot be in these formats: its states are not square.
"""
