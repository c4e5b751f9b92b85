"""Runs the kernels on the CPU: the text that MLX gives to Metal, compiled by g++ behind a small header.

`kernels_on_host` replaces MLX's own functions, so that all code above the kernels runs as on a GPU.
"""

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_deltamem.recurrence import engines, scan
from mlx_deltamem.recurrence.kernels import build
from mlx_deltamem.recurrence.kernels.build import Kernel
from tests.gpu_text import METAL_TYPES, Use, metal_text, metal_values

SANITIZE = "DELTAMEM_SANITIZE_KERNELS"
STAND_IN = Path(__file__).parent / "metal_on_host.h"
# CUDA rounds the number of threads up to whole groups, and the host runs as many.
_WHOLE_GROUP = 64

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ to compile the kernels with")


def host_kernel(kernel: Kernel, _: str = "metal") -> Callable[..., list[mx.array]]:
    """The function that `mx.fast.metal_kernel` would return, but for the CPU; it evaluates its inputs at once."""

    def run(
        inputs: Sequence[mx.array],
        template: build.Template,
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
        output_shapes: list[tuple[int, ...]],
        output_dtypes: list[mx.Dtype],
    ) -> list[mx.array]:
        assert grid[0] > 0 and grid[1:] == threadgroup[1:] == (1, 1) and threadgroup[0] <= grid[0]
        outputs = tuple(zip(output_shapes, output_dtypes, strict=True))
        use = Use(kernel, tuple((x.shape, x.dtype) for x in inputs), template, outputs, grid[0])
        arrays = [to_bytes(x) for x in inputs]
        # Numbers that the kernel does not write stay NaN.
        results = [
            np.full(mx.zeros(shape).nbytes if dtype == mx.float32 else mx.zeros(shape).nbytes // 2, 255, np.uint8)
            for shape, dtype in zip(output_shapes, output_dtypes, strict=True)
        ]
        shapes = [np.array(x.shape, np.int32) for x in inputs]
        pointers = [*(x.ctypes.data for x in arrays), *(x.ctypes.data for x in results)]
        compiled(host_text(use))(
            (ctypes.c_void_p * len(pointers))(*pointers),
            (ctypes.c_void_p * len(shapes))(*(x.ctypes.data for x in shapes)),
            -(-use.threads // _WHOLE_GROUP) * _WHOLE_GROUP,
        )
        return [
            mx.array(x.view(np.uint16 if dtype.size == 2 else np.uint32)).view(dtype).reshape(shape)
            for x, (shape, dtype) in zip(results, outputs, strict=True)
        ]

    return run


def to_bytes(x: mx.array) -> np.ndarray:
    return np.array(mx.contiguous(x).view(mx.uint8)).copy()


@functools.cache
def compiled(text: str) -> Callable[..., None]:
    """The kernel as a C function of the arrays, the shapes of the inputs, and the number of threads."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "kernel.cpp", Path(folder) / "kernel.so"
        source.write_text(text)
        command = ["g++", "-std=c++20", *_options(), "-shared", "-fPIC", *_WARNINGS, "-o", library, source]
        # The compiler must not run with the sanitizers' library.
        plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        result = subprocess.run(command, env=plain, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        # The file can be deleted after it is loaded.
        return ctypes.CDLL(str(library)).launch


# Metal has no double, so a hidden conversion to double is an error.
_WARNINGS = ["-Wall", "-Wdouble-promotion", "-Werror"]
_WARNINGS += ["-Wno-attributes", "-Wno-unknown-pragmas", "-Wno-unused-variable"]


def _options() -> list[str]:
    # The variable is set in a process that was started with the sanitizers' library.
    sanitizers = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    return sanitizers if os.environ.get(SANITIZE) else ["-O2"]


def host_text(use: Use) -> str:
    """A C++ file with the kernel and a function `launch` that runs its threads in a loop."""
    name, text = metal_text(use)
    arguments, pointers = [], 0
    for index, (key, (_, dtype)) in enumerate(zip(use.kernel.inputs, use.inputs, strict=True)):
        arguments.append(f"static_cast<const {METAL_TYPES[dtype]}*>(arrays[{pointers}])")
        if f"{key}_shape" in use.kernel.body:
            arguments.append(f"static_cast<const int*>(shapes[{index}])")
        pointers += 1
    for _, dtype in use.outputs:
        arguments.append(f"static_cast<{METAL_TYPES[dtype]}*>(arrays[{pointers}])")
        pointers += 1
    return (
        f'#include "{STAND_IN}"\n{text}\n'
        'extern "C" void launch(void** arrays, void** shapes, unsigned threads) {\n'
        "  for (unsigned thread = 0; thread < threads; ++thread) {\n"
        f"    {name}<{metal_values(use)}>({', '.join(arguments)}, uint3{{thread, 0, 0}});\n  }}\n}}\n"
    )


@pytest.fixture
def kernels_on_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the package run the kernels on the CPU, as if this were a Mac."""
    pretend_gpu(monkeypatch, host_kernel)
    yield
    forget_trials()


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, launch: Callable[..., build.Launch]) -> None:
    """Make the package find a GPU, with `launch` in place of `build.launch`; call `forget_trials` at the end."""
    monkeypatch.setattr(build, "launch", functools.cache(launch))
    monkeypatch.setattr(build, "gpu_language", lambda: "metal")
    for module in (engines, scan):
        monkeypatch.setattr(module, "on_gpu", lambda: True)
    forget_trials()


def forget_trials() -> None:
    for tried in (engines._fused_engine, scan._has_kernel):
        getattr(tried, "cache_clear", lambda: None)()
