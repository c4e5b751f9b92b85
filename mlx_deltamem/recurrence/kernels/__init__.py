"""The fused kernels: one source for Metal and CUDA, and what builds and launches it."""
