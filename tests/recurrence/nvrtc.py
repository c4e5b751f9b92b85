"""NVRTC, the compiler that MLX's CUDA backend uses, from its Python packages; it needs no GPU."""

import ctypes
import importlib.util
from pathlib import Path

# The part of MLX's header that the generated functions need.
_MLX_HEADER = """
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda/std/array>
namespace mlx::core::cu {
using Shape = cuda::std::array<int32_t, 10>;
}
"""
_HEADERS = ("cuda_runtime", "cuda_cccl")
# Do not warn about constants that only some tasks of a kernel use.
_UNUSED = "--diag-suppress=177"


def missing() -> str | None:
    """The first of the packages that are not installed, or None."""
    packages = {"cuda_nvrtc": "nvidia-cuda-nvrtc-cu12", "cuda_runtime": "nvidia-cuda-runtime-cu12"}
    packages["cuda_cccl"] = "nvidia-cuda-cccl-cu12"
    return next((package for folder, package in packages.items() if _folder(folder) is None), None)


def to_ptx(text: str, name: str, architecture: str = "compute_90") -> str:
    """Compile a kernel.

    Args:
        text: The whole CUDA source.
        name: The kernel's qualified name.

    Raises:
        ValueError: NVRTC reports errors or warnings; the message is its log.
    """
    nvrtc = ctypes.CDLL(str(next((_folder("cuda_nvrtc") / "lib").glob("libnvrtc.so.*"))))
    program = ctypes.c_void_p()
    headers = (ctypes.c_char_p * 1)(_MLX_HEADER.encode())
    names = (ctypes.c_char_p * 1)(b"mlx/backend/cuda/device/utils.cuh")
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 1, headers, names))
    try:
        _check(nvrtc.nvrtcAddNameExpression(program, name.encode()))
        options = [f"--gpu-architecture={architecture}", _UNUSED]
        options += [f"--include-path={_folder(folder) / 'include'}" for folder in _HEADERS]
        encoded = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        failed = nvrtc.nvrtcCompileProgram(program, len(options), encoded)
        log = _text(nvrtc, program, "ProgramLog")
        if failed or log.strip():
            raise ValueError(log)
        return _text(nvrtc, program, "PTX")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _text(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> str:
    size = ctypes.c_size_t()
    _check(getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(nvrtc, f"nvrtcGet{what}")(program, buffer))
    return buffer.value.decode()


def _check(result: int) -> None:
    if result:
        raise ValueError(f"NVRTC returned error {result}")


def _folder(name: str) -> Path | None:
    spec = importlib.util.find_spec("nvidia")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(place) / name).is_dir():
            return Path(place) / name
    return None
