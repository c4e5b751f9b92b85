"""The text that MLX 0.32 writes around the source of a kernel, so that tests can compile it without a GPU.

`metal_text` is compared with MLX's own text (recurrence/test_kernels.py). `cuda_text` follows
mlx/backend/cuda/custom_kernel.cpp.
"""

import math
from dataclasses import dataclass

import mlx.core as mx

from mlx_deltamem.recurrence.kernels.build import Kernel, Template

# The only attribute of a Metal thread that the sources of this project use.
_THREAD = "thread_position_in_grid"
# MLX puts inputs with fewer elements into Metal's constant address space.
_SMALLEST_DEVICE_INPUT = 8

METAL_TYPES = {
    mx.float32: "float",
    mx.float16: "float16_t",
    mx.bfloat16: "bfloat16_t",
    mx.bool_: "bool",
    mx.int32: "int32_t",
}
CUDA_TYPES = METAL_TYPES | {mx.float16: "__half", mx.bfloat16: "__nv_bfloat16"}


@dataclass(frozen=True)
class Use:
    """One use of a kernel: the arguments of MLX's functions.

    Attributes:
        kernel: The kernel.
        inputs: Shape and dtype of each input.
        template: The constants of the kernel.
        outputs: Shape and dtype of each output.
        threads: The number of threads.
    """

    kernel: Kernel
    inputs: tuple[tuple[tuple[int, ...], mx.Dtype], ...]
    template: Template
    outputs: tuple[tuple[tuple[int, ...], mx.Dtype], ...]
    threads: int


def metal_text(use: Use) -> tuple[str, str]:
    """Return the name of the Metal function, and the whole text."""
    kernel, name = use.kernel, metal_name(use)
    kinds = {bool: "bool", int: "int", mx.Dtype: "typename"}
    parameters = ", ".join(f"{kinds[type(value)]} {key}" for key, value in use.template)
    arguments = []
    for key, (shape, dtype) in zip(kernel.inputs, use.inputs, strict=True):
        space = "constant" if math.prod(shape) < _SMALLEST_DEVICE_INPUT else "device"
        arguments.append(f"  const {space} {METAL_TYPES[dtype]}* {key} [[buffer({len(arguments)})]]")
        if f"{key}_shape" in kernel.body:
            arguments.append(f"  const constant int* {key}_shape [[buffer({len(arguments)})]]")
    for key, (_, dtype) in zip(kernel.outputs, use.outputs, strict=True):
        arguments.append(f"  device {METAL_TYPES[dtype]}* {key} [[buffer({len(arguments)})]]")
    arguments.append(f"  uint3 {_THREAD} [[{_THREAD}]]")
    instance = f"{name}<{metal_values(use)}>"
    return name, (
        f"{kernel.header}template <{parameters}>\n[[kernel]] void {name}(\n"
        + ",\n".join(arguments)
        + f") {{\n{kernel.body}\n}}\n"
        + f'\ntemplate [[host_name("{name}")]] [[kernel]] decltype({instance}) {instance};\n'
    )


def metal_name(use: Use) -> str:
    """Return the name that MLX gives a Metal function: kernel, constants and dtypes."""
    values = "_".join(metal_values(use).split(", "))
    types = [
        METAL_TYPES[dtype] + ("c" if math.prod(shape) < _SMALLEST_DEVICE_INPUT else "") for shape, dtype in use.inputs
    ] + [METAL_TYPES[dtype] for _, dtype in use.outputs]
    return "_".join([f"custom_kernel_{use.kernel.name}_", values, *types])


def metal_values(use: Use) -> str:
    """Return the constants as template arguments of Metal."""
    return ", ".join(METAL_TYPES.get(value) or str(int(value)) for _, value in use.template)


def cuda_text(use: Use) -> tuple[str, str]:
    """Return the qualified name of the CUDA function, and the whole text for NVRTC."""
    kernel = use.kernel
    marks = {bool: lambda value: "_t" if value else "_f", int: lambda value: f"_{value}"}
    name = f"custom_kernel_{kernel.name}" + "".join(
        marks.get(type(value), lambda value: f"_{METAL_TYPES[value]}")(value) for _, value in use.template
    )
    arguments = []
    for key, (_, dtype) in zip(kernel.inputs, use.inputs, strict=True):
        arguments.append(f"    const {CUDA_TYPES[dtype]}* {key}")
        if f"{key}_shape" in kernel.body:
            arguments.append(f"    const __grid_constant__ Shape {key}_shape")
    for key, (_, dtype) in zip(kernel.outputs, use.outputs, strict=True):
        arguments.append(f"    {CUDA_TYPES[dtype]}* {key}")
    constants = "".join(f"  {_cuda_constant(key, value)}\n" for key, value in use.template)
    return f"mlx::core::cu::{name}", (
        '\n#include "mlx/backend/cuda/device/utils.cuh"\n\n#include <cooperative_groups.h>\n\n'
        f"{kernel.header}namespace mlx::core::cu {{\n\nnamespace cg = cooperative_groups;\n\n"
        f"__global__ void {name}(\n"
        + ",\n".join(arguments)
        + f") {{\n{constants}\n{kernel.body}\n}}\n\n}} // namespace mlx::core::cu\n"
    )


def _cuda_constant(key: str, value: int | bool | mx.Dtype) -> str:
    if isinstance(value, bool):
        return f"constexpr bool {key} = {str(value).lower()};"
    return f"constexpr int {key} = {value};" if isinstance(value, int) else f"using {key} = {CUDA_TYPES[value]};"
