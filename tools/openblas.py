"""Load OpenBLAS before MLX on Linux: the BLAS inside MLX's CPU wheel is some 20 times slower in float32.

Import this module before `mlx.core`. Where the library is absent (`apt-get install libopenblas0-pthread`), nothing
happens.
"""

import contextlib
import ctypes
import os
import sys

if sys.platform == "linux":
    # MLX calls BLAS from its own threads; OpenBLAS threads on top of them only get in the way.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with contextlib.suppress(OSError):
        ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)
