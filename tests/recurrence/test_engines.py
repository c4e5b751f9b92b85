"""The choice of the engine, kernels that fail, gradients through kernels, and whole models on kernels."""

import warnings
from collections.abc import Callable, Iterator

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_deltamem import (
    DeltaMemConfig,
    attach,
    delta_scan,
    make_prompt_cache,
    memory,
    read_only,
    write_spans,
)
from mlx_deltamem.recurrence import engines
from mlx_deltamem.recurrence.definition import delta_scan_reference
from mlx_deltamem.recurrence.engines import engine_for
from mlx_deltamem.recurrence.fused import FusedEngine
from mlx_deltamem.recurrence.kernels import build
from mlx_deltamem.recurrence.kernels.build import Kernel
from mlx_deltamem.recurrence.kernels.trial import Trial, trial
from mlx_deltamem.recurrence.ops import OpsEngine
from mlx_deltamem.recurrence.variant import Variant
from tests.conftest import distance, randomise
from tests.families import tiny_model
from tests.recurrence.host_kernels import forget_trials, host_kernel, needs_compiler, pretend_gpu
from tests.recurrence.kernel_cases import STANDARD, Case, make_arrays

TOO_LARGE = Variant(65, 1, True, True, False, "standard")


@pytest.mark.skipif(build.gpu_language() is not None, reason="this machine has a GPU")
def test_without_a_gpu_operations_run_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert engine_for(STANDARD, mx.float32, training=False) == OpsEngine(STANDARD)


@pytest.mark.slow
@needs_compiler
@pytest.mark.usefixtures("kernels_on_host")
def test_on_a_gpu_kernels_run_where_they_can():
    assert engine_for(STANDARD, mx.bfloat16, training=False) == FusedEngine(STANDARD)
    assert engine_for(STANDARD, mx.bfloat16, training=True) == OpsEngine(STANDARD)
    assert engine_for(STANDARD, mx.float64, training=False) == OpsEngine(STANDARD)
    assert engine_for(TOO_LARGE, mx.float32, training=False) == OpsEngine(TOO_LARGE)


def test_a_cpu_stream_is_not_a_gpu(monkeypatch):
    monkeypatch.setattr(build, "gpu_language", lambda: "metal")
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    assert build.on_gpu()
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    assert not build.on_gpu()


def failing(message: str) -> Callable[..., build.Launch]:
    def launch(*_: object) -> build.Launch:
        def run(**_: object) -> list[mx.array]:
            raise RuntimeError(message)

        return run

    return launch


def wrong(kernel: Kernel, _: str) -> build.Launch:
    def run(output_shapes, output_dtypes, **_: object) -> list[mx.array]:
        return [mx.full(shape, 9.0, dtype) for shape, dtype in zip(output_shapes, output_dtypes, strict=True)]

    return run


def garbled(kernel: Kernel, _: str) -> build.Launch:
    def run(output_shapes, output_dtypes, **_: object) -> list[mx.array]:
        return [mx.full(shape, mx.nan, dtype) for shape, dtype in zip(output_shapes, output_dtypes, strict=True)]

    return run


@pytest.fixture(params=[failing("Failed to compile kernel:\n  no such type."), wrong, garbled])
def broken_gpu(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    pretend_gpu(monkeypatch, request.param)
    monkeypatch.setattr(trial, "_warned", False)
    yield
    forget_trials()


@pytest.mark.slow
@pytest.mark.usefixtures("broken_gpu")
def test_where_kernels_fail_operations_run_after_one_warning():
    model = tiny_model("qwen3")
    attach(model, DeltaMemConfig(output_init="base_slice"))
    with pytest.warns(RuntimeWarning, match=r"the fused kernel cannot be used here \(.*\); using MLX") as told:
        assert engine_for(STANDARD, mx.float32, training=False) == OpsEngine(STANDARD)
        assert engine_for(STANDARD, mx.bfloat16, training=False) == OpsEngine(STANDARD)
        delta_scan(mx.zeros((1, 1, 4, 4)), *[mx.ones((1, 20, 1, 4))] * 6)
        model(mx.array([[1, 2, 3]]))
    assert len(told) == 1
    assert "\n" not in str(told[0].message)


def wrong_in(text: str) -> Callable[[Kernel, str], build.Launch]:
    """Kernels that are right, except the kernels with this text in their header or name."""
    return lambda kernel, language: (wrong if text in kernel.header + kernel.file else host_kernel)(kernel, language)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    "kind", ["TASK DELTA_SCAN", "TASK DELTA_READ", "TASK DELTA_MAPS", "TASK DELTA_CHUNKS", "starts"]
)
@pytest.mark.parametrize("masked", [False, True])
def test_every_kind_of_kernel_is_tried(monkeypatch, kind, masked):
    monkeypatch.setattr(trial, "_warned", True)
    pretend_gpu(monkeypatch, wrong_in(kind))
    assert engine_for(STANDARD, mx.float32, training=False, masked=masked) == OpsEngine(STANDARD)
    pretend_gpu(monkeypatch, wrong_in("DELTA_MASKED 1\n"))
    used = engine_for(STANDARD, mx.float32, training=False, masked=masked)
    assert used == (OpsEngine if masked else FusedEngine)(STANDARD)
    forget_trials()


@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_are_finite_for_zeros_and_for_padding_that_is_garbage(length, masked):
    projected, bias, state, _ = make_arrays(Case(STANDARD), length)
    mask = mx.arange(length)[None] + mx.arange(2)[:, None] > 0 if masked else None
    projected = mx.where(mask[..., None], projected, mx.nan) if masked else projected * 0.0

    def loss(projected: mx.array, bias: mx.array, state: mx.array) -> mx.array:
        reads, new_state = OpsEngine(STANDARD).scan(projected, bias, state, mask)
        return (reads**2).sum() + (new_state**2).sum() + (OpsEngine(STANDARD).read(projected, state, mask) ** 2).sum()

    for gradient in mx.grad(loss, argnums=(0, 1, 2))(projected, bias, state):
        assert mx.isfinite(gradient).all()


@needs_compiler
@pytest.mark.usefixtures("kernels_on_host")
def test_empty_batches_give_empty_reads():
    for shape in ((0, 5, 32), (0, 1, 32), (2, 0, 32)):
        state = mx.ones((shape[0], 1, 8, 8))
        reads, new_state = FusedEngine(STANDARD).scan(mx.zeros(shape), mx.zeros(8), state)
        assert reads.shape == FusedEngine(STANDARD).read(mx.zeros(shape), state).shape == (*shape[:2], 8)
        assert mx.array_equal(new_state, state)


@pytest.mark.slow
def test_a_trial_may_be_within_a_transformation_and_draws_no_random_numbers(monkeypatch):
    monkeypatch.setattr(trial, "_warned", True)
    pretend_gpu(monkeypatch, wrong)
    try:
        projected, bias, state, _ = make_arrays(Case(STANDARD), 5)
        before = mx.random.state[0].tolist()

        def loss(x: mx.array) -> mx.array:
            engine = engine_for(STANDARD, x.dtype, training=False)
            return (engine.scan(x, bias, state)[0] ** 2).sum()

        assert mx.abs(mx.grad(loss)(projected)).max() > 0
        forget_trials()
        assert mx.compile(loss)(projected) > 0
        assert mx.random.state[0].tolist() == before
    finally:
        forget_trials()


def test_a_trial_passes_results_that_agree():
    exact = [mx.array([1.0, 2.0])]
    assert Trial().passes(lambda: [exact[0] + 1e-4], lambda: exact, tolerance=1e-3)


def as_operations(kernel: Kernel, _: str) -> build.Launch:
    """Kernels made from operations, to run within a transformation; like real kernels, they have no gradient."""

    def run(inputs, template, **_: object) -> list[mx.array]:
        outputs = history(inputs, dict(template)) if kernel.file == "history" else scan_or_read(inputs, dict(template))
        return [mx.stop_gradient(x) for x in outputs]

    def history(inputs: list[mx.array], constants: dict) -> list[mx.array]:
        state, keys, write_keys, written, keep, erase = inputs
        states, length = {}, keys.shape[1]
        for t in reversed(range(length)) if constants["REVERSED"] else range(length):
            states[t] = state
            recalled = (state * keys[:, t, :, None]).sum(-1)
            state = keep[:, t, ..., None] * state - (erase[:, t] * recalled)[..., None] * keys[:, t, :, None]
            state = state + written[:, t, ..., None] * write_keys[:, t, :, None]
        return [mx.stack([states[t] for t in range(length)], axis=1), state]

    def scan_or_read(inputs: list[mx.array], constants: dict) -> list[mx.array]:
        assert constants["RANK"] == STANDARD.rank and constants["NORMALIZE"]
        arrays = dict(zip(kernel.inputs, inputs, strict=True))
        if "gate_bias" in arrays:
            reads, state = OpsEngine(STANDARD).scan(*inputs)
            return [reads, state]
        return [OpsEngine(STANDARD).read(*inputs)]

    return run


@pytest.fixture
def lazy_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    pretend_gpu(monkeypatch, as_operations)
    yield
    forget_trials()


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.usefixtures("lazy_gpu")
def test_the_gradient_of_the_fused_engine_is_that_of_the_operations(masked):
    *arrays, mask = make_arrays(Case(STANDARD, masked=masked), 7)

    def loss(engine: OpsEngine | FusedEngine) -> Callable[..., mx.array]:
        def run(projected: mx.array, bias: mx.array, state: mx.array) -> mx.array:
            reads, end = engine.scan(projected, bias, state, mask)
            return (reads**3).sum() + (end**3).sum() + (engine.read(projected, state, mask) ** 3).sum()

        return run

    found = mx.grad(loss(FusedEngine(STANDARD)), argnums=(0, 1, 2))(*arrays)
    expected = mx.grad(loss(OpsEngine(STANDARD)), argnums=(0, 1, 2))(*arrays)
    compiled = mx.compile(mx.grad(loss(FusedEngine(STANDARD)), argnums=(0, 1, 2)))(*arrays)
    for x, y, z in zip(found, expected, compiled, strict=True):
        assert mx.abs(y).max() > 0.01
        assert distance(x, y) <= 1e-4 * mx.abs(y).max().item()
        assert distance(z, y) <= 1e-4 * mx.abs(y).max().item()


@pytest.mark.usefixtures("lazy_gpu")
def test_the_gradient_of_the_history_scan_is_that_of_the_recurrence():
    state = mx.random.normal((2, 3, 4, 4))
    tokens = [mx.random.normal((2, 9, 3, 4)) * 0.5 for _ in range(6)]
    mask = mx.random.uniform(shape=(2, 9)) > 0.3

    def loss(scan: Callable[..., tuple[mx.array, mx.array]]) -> Callable[..., mx.array]:
        def run(*arrays: mx.array) -> mx.array:
            reads, end = scan(*arrays, mask=mask)
            return (reads**3).sum() + (end**3).sum()

        return run

    found = mx.grad(loss(delta_scan), argnums=range(7))(state, *tokens)
    expected = mx.grad(loss(delta_scan_reference), argnums=range(7))(state, *tokens)
    for x, y in zip(found, expected, strict=True):
        assert mx.abs(y).max() > 0.01
        assert distance(x, y) <= 1e-4 * mx.abs(y).max().item()

    with pytest.raises(ValueError, match="expected gradients of the first order"):
        mx.grad(lambda *arrays: mx.grad(loss(delta_scan), argnums=1)(*arrays).sum())(state, *tokens)


@pytest.mark.usefixtures("lazy_gpu")
def test_a_model_in_evaluation_mode_has_gradients(monkeypatch):
    monkeypatch.setattr(engines, "_fused_engine", lambda variant, *_: FusedEngine(variant))
    model = tiny_model("qwen3")
    attach(model, DeltaMemConfig(output_init="base_slice"))
    model.eval()
    ids = mx.array([[1, 2, 3, 4, 5]])

    def loss(model: nn.Module) -> mx.array:
        return (model(ids) ** 2).mean()

    fused = nn.value_and_grad(model, loss)(model)[1]
    model.train()
    ops = nn.value_and_grad(model, loss)(model)[1]
    for layer in (0, 1):
        fused_layer, ops_layer = (grads["model"]["layers"][layer]["self_attn"]["delta_mem"] for grads in (fused, ops))
        for name, expected in ops_layer.items():
            assert distance(fused_layer[name], expected) <= 1e-5 * max(1e-3, mx.abs(expected).max().item()), name


def run_through(model: nn.Module) -> list[mx.array]:
    """The logits and states of several kinds of calls: prompts, steps, batches with padding, read_only, spans."""
    results = []
    ids = mx.random.randint(0, 64, (2, 70), key=mx.random.key(1))
    cache = make_prompt_cache(model, left_padding=[0, 9])
    for part in (ids[:, :60], ids[:, 60:69], ids[:, 69:]):
        results.append(model(part, cache=cache))
        mx.eval(results)
    with read_only(model):
        results += [model(ids[:, :3], cache=cache), model(ids[:, :1], cache=cache)]
    results += memory(cache).values()
    cache = make_prompt_cache(model)
    with write_spans(model, [[0, 0, 0, -1, 1, 1]]):
        results.append(model(ids[:1, :6], cache=cache))
    return [*results, *memory(cache).values(), model(ids)]


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_state_heads": 4, "rank": 4, "memory_write_granularity": "message_mean", "rankwise_gates": False},
        {"couple_lambda": False, "state_update_mode": "lambda_outside", "delta_heads": ("q", "o"), "rank": 3},
    ],
)
def test_a_model_has_the_same_results_on_kernels_and_on_operations(options, monkeypatch):
    model = tiny_model("qwen3")
    attach(model, DeltaMemConfig(**options))
    randomise(model)
    expected = run_through(model)
    used: list[str] = []

    def noting(kernel: Kernel, language: str) -> build.Launch:
        used.append(kernel.file)
        return host_kernel(kernel, language)

    pretend_gpu(monkeypatch, noting)
    try:
        for found, wanted in zip(run_through(model), expected, strict=True):
            assert distance(found, wanted) <= 1e-4
    finally:
        forget_trials()
    assert {"tokens", "starts"} <= set(used)
