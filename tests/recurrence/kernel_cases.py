"""Cases for the fused kernels, on the host (test_kernels.py) and on a GPU (test_gpu.py)."""

from dataclasses import dataclass

import mlx.core as mx

from mlx_deltamem import delta_scan
from mlx_deltamem.recurrence import gates as gating
from mlx_deltamem.recurrence.definition import delta_scan_reference
from mlx_deltamem.recurrence.variant import Variant

STANDARD = Variant(rank=8, heads=1, normalized=True, rankwise=True, free_lambda=False, mode="standard")


@dataclass(frozen=True)
class Case:
    """One variant of the recurrence over batches of tokens."""

    variant: Variant
    dtype: mx.Dtype = mx.float32
    lengths: tuple[int, ...] = (1, 5, 100)
    masked: bool = False
    batch: int = 2

    def __str__(self) -> str:
        v = self.variant
        options = ["unnormalized"] * (not v.normalized) + ["scalar"] * (not v.rankwise) + ["lambda"] * v.free_lambda
        return "-".join([f"r{v.rank}", f"h{v.heads}", v.mode, *options, f"{self.dtype}"[9:], "mask" * self.masked])


CASES = [
    Case(STANDARD, lengths=(1, 63, 64, 65, 300)),
    Case(STANDARD, lengths=(2048, 8192), batch=1),
    Case(STANDARD, lengths=(1, 5, 100), masked=True, batch=3),
    Case(Variant(8, 4, True, True, False, "standard"), mx.bfloat16, lengths=(1, 2, 257, 8192), batch=1),
    Case(Variant(8, 4, True, True, False, "standard"), mx.bfloat16, masked=True),
    Case(Variant(1, 1, True, True, True, "standard")),
    Case(Variant(4, 2, True, False, True, "lambda_outside"), mx.float16),
    Case(Variant(4, 4, True, False, False, "no_lambda")),
    Case(Variant(16, 1, False, True, True, "standard"), mx.bfloat16),
    Case(Variant(64, 1, True, True, False, "standard"), lengths=(1, 40)),
    Case(Variant(64, 4, True, True, True, "lambda_outside"), mx.bfloat16, lengths=(40,), batch=1),
]


def make_arrays(case: Case, length: int) -> tuple[mx.array, mx.array, mx.array, mx.array | None]:
    """Raw projections, biases of the gates, states and perhaps a mask; some gates are fully open and some shut."""
    v = case.variant
    scale = 1.5 if v.normalized else 0.3
    projected = mx.random.normal((case.batch, length, v.columns)) * scale
    # β of exactly 1, with which a coupled λ is exactly 0, and β of exactly 0.
    raw = mx.random.uniform(shape=(case.batch, length, v.columns - 3 * v.width))
    gates = mx.where(raw > 0.9, 200.0, mx.where(raw < 0.1, -200.0, projected[..., 3 * v.width :]))
    projected = mx.concatenate([projected[..., : 3 * v.width], gates], axis=-1).astype(case.dtype)
    bias = mx.random.normal((v.columns - 3 * v.width,))
    state = mx.random.normal((case.batch, v.heads, v.rank, v.rank)) * 0.5
    # The first row always begins with padding.
    first = mx.arange(length) + mx.arange(case.batch)[:, None] == 0
    mask = (mx.random.uniform(shape=(case.batch, length)) > 0.3) & ~first if case.masked else None
    return projected, bias, state, mask


def with_garbage(projected: mx.array, mask: mx.array | None) -> mx.array:
    """The projections with NaN in the masked tokens."""
    return projected if mask is None else mx.where(mask[..., None], projected, mx.nan).astype(projected.dtype)


def by_definition(
    case: Case, projected: mx.array, bias: mx.array, state: mx.array, mask: mx.array | None
) -> tuple[mx.array, mx.array, mx.array]:
    """The reads and the states of a scan, and the reads of the unchanged state, float32."""
    v = case.variant
    queries, keys, values, gates = mx.split(projected, [v.width, 2 * v.width, 3 * v.width], axis=-1)
    queries, keys = gating.unit_vectors(queries, v), gating.unit_vectors(keys, v)
    scan = delta_scan_reference if projected.shape[1] <= 1000 else delta_scan
    prepared = (queries, keys, gating.by_head(values, v), *gating.gates(gates, bias, v))
    reads, new_state = scan(state, *prepared, mask=mask)
    nothing = mx.zeros_like(keys)
    constant, _ = delta_scan(state, queries, nothing, nothing, nothing + 1, nothing, nothing, mask=mask)
    flat = (*projected.shape[:2], -1)
    return reads.reshape(flat), new_state, constant.reshape(flat)


def tolerance(dtype: mx.Dtype, expected: mx.array) -> float:
    """The allowed error: float32 sums in another order, or the last bit of a half-precision number."""
    largest = max(1.0, mx.abs(expected).max().item())
    return largest * {mx.float32: 1e-5, mx.float16: 2**-10, mx.bfloat16: 2**-7}[dtype]
