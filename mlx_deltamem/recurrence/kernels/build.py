"""Builds the kernels for the machine's GPU, from one source for Metal and CUDA."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import cast

import mlx.core as mx

# A thread keeps one row of a state in its registers, so the rank is limited.
LARGEST_RANK = 64
_THREADS_PER_GROUP = 64

# MLX's function for one kernel, called with the keyword arguments of `Kernel.__call__`.
Launch = Callable[..., Sequence[mx.array]]
# The names and values of a kernel's template constants.
Template = tuple[tuple[str, int | bool | mx.Dtype], ...]


@functools.cache
def gpu_language() -> str | None:
    """The language that this build of MLX compiles for the machine's GPU, `metal` or `cuda`; None without a GPU."""
    if mx.metal.is_available():
        return "metal"
    return "cuda" if mx.cuda.is_available() else None


def on_gpu() -> bool:
    """Whether MLX's default device is a GPU that the kernels can be built for."""
    return gpu_language() is not None and mx.default_device() == mx.gpu


@dataclass(frozen=True, eq=False)
class Kernel:
    """A GPU kernel from a source file of this folder. MLX compiles it when it first evaluates a result.

    Attributes:
        file: The name of the source file, without `.h`.
        inputs, outputs: The names of the arrays, in the order of the arguments and results.
        definitions: Names and values of macros that select a part of the source.
    """

    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    definitions: tuple[tuple[str, int | str], ...] = ()

    @property
    def header(self) -> str:
        """The text before the kernel's function: the macros and `names.h`."""
        lines = [f"#define {name} {value}\n" for name, value in self.definitions]
        return "".join(lines) + _text("names")

    @property
    def body(self) -> str:
        """The body of the kernel's function; MLX writes the signature."""
        return _text(self.file)

    @property
    def name(self) -> str:
        """A name with a hash of the text, because MLX may look up compiled CUDA kernels by name and template alone."""
        digest = hashlib.sha256((self.header + self.body).encode()).hexdigest()[:12]
        return f"deltamem_{self.file}_{digest}"

    def __call__(
        self,
        inputs: Sequence[mx.array],
        template: Template,
        threads: int,
        outputs: Sequence[tuple[tuple[int, ...], mx.Dtype]],
    ) -> Sequence[mx.array]:
        """Add the kernel to the graph.

        Args:
            inputs: The arrays, in the order of `self.inputs`.
            template: The template constants of the source, which include the dtype of the activations.
            threads: The number of threads. CUDA rounds it up to whole groups.
            outputs: The shape and dtype of each output.
        """
        return launch(self, gpu_language())(
            inputs=inputs,
            template=template,
            grid=(threads, 1, 1),
            threadgroup=(min(threads, _THREADS_PER_GROUP), 1, 1),
            output_shapes=[shape for shape, _ in outputs],
            output_dtypes=[dtype for _, dtype in outputs],
        )


@functools.cache
def launch(kernel: Kernel, language: str) -> Launch:
    """MLX's function for a kernel. It is made at the first use, because MLX makes none without a GPU."""
    make = mx.fast.metal_kernel if language == "metal" else mx.fast.cuda_kernel
    function = make(
        name=kernel.name,
        input_names=kernel.inputs,
        output_names=kernel.outputs,
        source=kernel.body,
        header=kernel.header,
    )
    # MLX's type stubs say only that it is an `object`.
    return cast(Launch, function)


@functools.cache
def _text(file: str) -> str:
    return files(__package__).joinpath(f"{file}.h").read_text()
