"""The adapter and the model: a frozen mlx-lm model with a δ-mem memory in its attention layers.

Where to begin: `config.py` (what an adapter computes), `layer.py` (the memory of one attention layer), `attention.py`
(how the memory gets into the call of the layer) and `model.py` (`attach` and `detach`). The other files:

- The adapter: `fields.py` (the fields of its configuration), `adapter.py` (its tensors), `shapes.py` (the shapes of the
  tensors for an attention layer), `initial.py` (the weights before training).
- The memory: `reads.py` (what tokens read and how it corrects the layer), `key_shift.py` (an option for its keys),
  `cache.py` (the states in mlx-lm's prompt cache), `entry.py` (the entry of the cache that holds them, and how it is
  trimmed), `past.py` (what is kept of earlier passes for that), `drafting.py` (the cache with a draft model).
- The use of it: `access.py` (what the tokens of a pass may do), `use.py` (`read_only`, `write_spans`, `write_mask`),
  `spans.py` (tokens that are written as one), `targets.py` (the attention layers of a model).
"""
