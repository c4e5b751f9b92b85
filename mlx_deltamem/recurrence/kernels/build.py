"""Builds the fused kernels for the GPU at hand, from one source."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files

import mlx.core as mx

# A kernel holds one row of a state in the registers of one thread.
LARGEST_RANK = 64
_THREADS_PER_GROUP = 64

Launch = Callable[..., Sequence[mx.array]]
# Names and values of a kernel's constants.
Template = tuple[tuple[str, int | bool | mx.Dtype], ...]


@functools.cache
def gpu_language() -> str | None:
    """`metal` or `cuda`, what this build of MLX can compile for the machine's GPU; None without one."""
    if mx.metal.is_available():
        return "metal"
    return "cuda" if mx.cuda.is_available() else None


def on_gpu() -> bool:
    """Whether what is computed now goes to a GPU that the kernels can be built for."""
    return gpu_language() is not None and mx.default_device() == mx.gpu


@dataclass(frozen=True, eq=False)
class Kernel:
    """A kernel: a source file of this folder and how it is used. It is compiled when a first result is evaluated.

    Attributes:
        file: The source's name without its ending.
        inputs, outputs: The names of the arrays, in their order.
        definitions: Macros on which the source and its arrays depend.
    """

    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    definitions: tuple[tuple[str, int | str], ...] = ()

    @property
    def header(self) -> str:
        """What comes before the kernel's function."""
        lines = [f"#define {name} {value}\n" for name, value in self.definitions]
        return "".join(lines) + _text("names")

    @property
    def body(self) -> str:
        """What is in the kernel's function; MLX writes the signature around it."""
        return _text(self.file)

    @property
    def name(self) -> str:
        """A name for this text and no other: MLX may find compiled CUDA kernels by name and template alone."""
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
            inputs: The arrays, as `self.inputs` names them.
            template: Constants of the source; the dtypes of inputs that vary are among them.
            threads: How many there are at least.
            outputs: Shape and dtype of each output.
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
    """MLX's function for a kernel; without a GPU there is none, so that it is made when it is needed."""
    make = mx.fast.metal_kernel if language == "metal" else mx.fast.cuda_kernel
    return make(
        name=kernel.name,
        input_names=kernel.inputs,
        output_names=kernel.outputs,
        source=kernel.body,
        header=kernel.header,
    )


@functools.cache
def _text(file: str) -> str:
    return files(__package__).joinpath(f"{file}.h").read_text()
