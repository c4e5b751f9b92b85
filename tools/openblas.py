"""Load OpenBLAS before MLX on Linux. The BLAS inside MLX's CPU wheel is about 20 times slower in float32.

Import this module before `mlx.core`. Without the library (`apt-get install libopenblas0-pthread`) it does nothing.
"""

import contextlib
import ctypes
import os
import sys

if sys.platform == "linux":
    # MLX calls BLAS from its own threads. Additional threads of OpenBLAS make that slower.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with contextlib.suppress(OSError):
        ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)
