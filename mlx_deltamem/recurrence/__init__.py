"""The recurrence of δ-mem: a state that each token reads and then writes.

Read `definition.py` first: it is the method in one loop. `gates.py` makes the inputs of the loop from the projections
of a token, as the adapter's `variant.py` says. The other files compute the same results faster:

- `scan.py`: `delta_scan`, the recurrence over given keys, values and gates, in the fastest form for the device.
- `chunked.py`: chunks of a sequence side by side, from MLX's own operations; `kernels/history.py`: the same on a GPU.
- `sequential.py`: one token after the other, with few operations each; faster where states are large or many.
- `ops.py` and `fused.py`: the two engines, which run a layer's memory from the projections to the reads, with MLX's
  operations or with the GPU kernels of `kernels/`. `engines.py` chooses between them.
- `custom_gradient.py`: a function with its own gradient, with types.
"""
