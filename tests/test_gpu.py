"""The fused kernels on the GPU of this machine. `make gpu-check` runs these tests."""

import mlx.core as mx
import pytest

from mlx_deltamem import DeltaMemConfig, attach, delta_scan
from mlx_deltamem.benchmarking.dispatches import added_primitives
from mlx_deltamem.recurrence.definition import delta_scan_reference
from mlx_deltamem.recurrence.engines import engine_for
from mlx_deltamem.recurrence.fused import FusedEngine
from mlx_deltamem.recurrence.kernels import build
from tests.conftest import distance, randomise
from tests.families import tiny_model
from tests.recurrence.kernel_cases import CASES, STANDARD, by_definition, make_arrays, tolerance, with_garbage
from tests.recurrence.test_engines import run_through

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(build.gpu_language() is None, reason="this machine has no GPU that MLX can use"),
    pytest.mark.filterwarnings("error:the fused kernel"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_fused_engine_is_the_recurrence(case):
    engine = engine_for(case.variant, case.dtype, training=False)
    assert engine == FusedEngine(case.variant)
    for length in case.lengths:
        projected, bias, state, mask = make_arrays(case, length)
        with mx.stream(mx.cpu):
            reads, new_state, constant = by_definition(case, projected, bias, state, mask)
        raw = with_garbage(projected, mask)
        found, found_state = engine.scan(raw, bias, state, mask)
        assert distance(found, reads) <= 4 * tolerance(case.dtype, reads)
        assert distance(found_state, new_state) <= 4 * tolerance(mx.float32, new_state)
        assert distance(engine.read(raw, state, mask), constant) <= 4 * tolerance(case.dtype, constant)


@pytest.mark.parametrize("rank", [1, 8, 64])
def test_training_scans_with_history(rank):
    state = mx.random.normal((2, 3, rank, rank))
    tokens = [mx.random.uniform(shape=(2, 40, 3, rank)) / rank**0.5 for _ in range(6)]

    def loss(scan, *arrays: mx.array) -> mx.array:
        reads, end = scan(*arrays)
        return (reads**2).sum() + (end**2).sum()

    found = mx.grad(lambda *arrays: loss(delta_scan, *arrays), argnums=range(7))(state, *tokens)
    mx.eval(found)
    with mx.stream(mx.cpu):
        expected = mx.grad(lambda *arrays: loss(delta_scan_reference, *arrays), argnums=range(7))(state, *tokens)
        for x, y in zip(found, expected, strict=True):
            assert distance(x, y) <= 1e-3 * max(1.0, mx.abs(y).max().item())


@pytest.mark.parametrize("options", [{}, {"num_state_heads": 4, "rank": 4, "memory_write_granularity": "message_mean"}])
def test_a_model_does_what_it_does_on_the_cpu(options):
    model = tiny_model("qwen3")
    attach(model, DeltaMemConfig(**options))
    randomise(model)
    found = run_through(model)
    mx.eval(found)
    with mx.stream(mx.cpu):
        for x, y in zip(found, run_through(model), strict=True):
            assert distance(x, y) <= 1e-2 * max(1.0, mx.abs(y).max().item())


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_a_step_adds_four_dispatches(dtype):
    attached, frozen = tiny_model("qwen3"), tiny_model("qwen3")
    for model in (attached, frozen):
        model.set_dtype(dtype)
    attach(attached, DeltaMemConfig(delta_heads=("q", "o")))
    assert added_primitives(attached, frozen) == {"Matmul": 1, "CustomKernel": 1, "AddMM": 2}


def test_one_kernel_serves_two_dtypes_in_turn():
    for dtype in (mx.float32, mx.bfloat16, mx.float16, mx.float32):
        engine = FusedEngine(STANDARD)
        projected = mx.full((1, 3, STANDARD.columns), 0.5, dtype)
        reads, _ = engine.scan(projected, mx.zeros(8), mx.ones((1, 1, 8, 8)))
        assert abs(reads[0, 0, 0].item() - 8**0.5) < 0.05
