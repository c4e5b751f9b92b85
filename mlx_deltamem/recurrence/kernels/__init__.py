"""The GPU kernels of the recurrence, one source for Metal and CUDA, and the code that builds, tries and launches them.

`tokens.h` and `starts.h` run a layer's memory from the projections to the reads (`launch.py`); `history.h` runs the
recurrence alone and keeps every state, for training (`history.py`). `names.h` hides the differences of the languages.
"""
