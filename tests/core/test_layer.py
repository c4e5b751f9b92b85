"""The memory of one layer against the equations of the method in float64, over all options of the configuration."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_deltamem import DeltaMemConfig
from mlx_deltamem.core.access import Access, WriteUnits
from mlx_deltamem.core.layer import DeltaMemory
from mlx_deltamem.core.shapes import AttentionShape, parameter_shapes
from mlx_deltamem.core.spans import Spans
from tests.conftest import distance

SHAPE = AttentionShape(hidden=12, q=10, k=6, v=6, o=12)

configs = st.builds(
    DeltaMemConfig,
    rank=st.sampled_from([1, 3, 8]),
    alpha=st.sampled_from([1.0, 16.0]),
    normalize_qk=st.booleans(),
    couple_lambda=st.booleans(),
    state_update_mode=st.sampled_from(["standard", "lambda_outside", "no_lambda"]),
    rankwise_gates=st.booleans(),
    num_state_heads=st.sampled_from([1, 2, 4]),
    delta_heads=st.lists(st.sampled_from("qkvo"), unique=True),
    delta_o_rmsnorm=st.booleans(),
    trainable_delta_scale=st.booleans(),
    delta_scale_max=st.sampled_from([2.0, 3.5]),
    delta_scale_granularity=st.sampled_from(["layer", "head"]),
    read_gate=st.booleans(),
    key_shift=st.booleans(),
)


def make_memory(config: DeltaMemConfig, shape: AttentionShape = SHAPE) -> DeltaMemory:
    weights = {name: mx.random.normal(size) * 0.4 for name, size in parameter_shapes(config, shape).items()}
    return DeltaMemory(config, shape, weights)


def written_out(
    layer: DeltaMemory, x: mx.array, state: mx.array, units: list[list[int]] | None
) -> tuple[np.ndarray, np.ndarray]:
    """The reads and the final state of one row, in a loop over heads and tokens; `units` are tokens written as one."""
    config, w = layer.config, {name: np.array(value, np.float64) for name, value in layer.items()}
    x, r = np.array(x, np.float64), config.rank
    final, reads = np.array(state, np.float64), np.zeros((len(x), config.width))
    for head in range(config.num_state_heads):
        rows = slice(head * r, (head + 1) * r)
        gate_rows = rows if config.rankwise_gates else slice(head, head + 1)
        current = final[head, :r]
        steps = [[t] for t in range(len(x))] if units is None else units
        if units is not None:
            for t, token in enumerate(x):
                reads[t, rows] = current @ vector(w["memory_q_proj"][rows] @ token, config)
        for step in steps:
            mean = x[step].mean(axis=0)
            if units is None:
                reads[step[0], rows] = current @ vector(w["memory_q_proj"][rows] @ mean, config)
            raw_key, value = w["memory_k_proj"][rows] @ mean, w["memory_v_proj"][rows] @ mean
            if config.key_shift:
                raw_key = raw_key + w["key_shift"][rows] * final[head, r]
                final[head, r] = w["memory_q_proj"][rows] @ mean
            key = vector(raw_key, config)
            beta = sigmoid(w["beta_proj"][gate_rows] @ mean + w["beta_bias"][gate_rows])
            lam = 1 - beta
            if not config.couple_lambda:
                lam = sigmoid(w["lambda_proj"][gate_rows] @ mean + w["lambda_bias"][gate_rows])
            keep = 1.0 if config.state_update_mode == "no_lambda" else lam[:, None]
            erase = lam * beta if config.state_update_mode == "lambda_outside" else beta
            current = keep * current - (erase * (current @ key))[:, None] * key + (beta * value)[:, None] * key
        final[head, :r] = current
        if config.read_gate:
            reads[:, rows] *= sigmoid(x @ w["read_gate_proj"][head] + w["read_gate_bias"][head])[:, None]
    return reads, final


def vector(raw: np.ndarray, config: DeltaMemConfig) -> np.ndarray:
    if not config.normalize_qk:
        return raw
    squashed = np.tanh(raw)
    return squashed / max(np.linalg.norm(squashed), 1e-6)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def correction(layer: DeltaMemory, head: str, reads: np.ndarray) -> np.ndarray:
    config, w = layer.config, {name: np.array(value, np.float64) for name, value in layer.items()}
    scale = config.alpha / config.rank
    if config.trainable_delta_scale:
        index = "qkvo".index(head) if config.delta_scale_granularity == "head" else 0
        scale *= config.delta_scale_max * sigmoid(w["delta_scale_raw"][index])
    delta = scale * reads @ w[f"delta_{head}_proj"].T
    if head == "o" and config.delta_o_rmsnorm:
        delta = delta / np.sqrt((delta**2).mean(axis=-1, keepdims=True) + config.delta_o_rmsnorm_eps)
        delta = delta * w["delta_o_rmsnorm_weight"]
    return delta


@pytest.mark.slow
@settings(max_examples=60)
@given(config=configs, seed=st.integers(0, 10**6), length=st.sampled_from([1, 7, 20]), means=st.booleans())
def test_equations(config, seed, length, means):
    mx.random.seed(seed)
    layer = make_memory(config)
    x = mx.random.normal((2, length, SHAPE.hidden)) * 0.5
    state = mx.random.normal((2, *layer.state_shape)) * 0.5
    ids = np.random.default_rng(seed).integers(-1, 3, (2, length))
    ids[:, 0] = 1
    config_of_means = DeltaMemConfig(memory_write_granularity="message_mean")
    units = Spans(ids, None, config_of_means).units(2, length, None) if means else None
    reads, new_state = layer.read_and_write(x, state, Access(units=units))
    steered = {head: mx.random.normal((2, length, SHAPE.width(head))) for head in config.delta_heads}
    results = {head: reads.correct(f"{head}_proj", base) for head, base in steered.items()}
    for row in range(2):
        groups = [np.flatnonzero(ids[row] == i).tolist() for i in range(3)]
        expected_reads, expected_state = written_out(
            layer, x[row], state[row], [group for group in groups if group] if means else None
        )
        close(new_state[row], expected_state)
        for head, base in steered.items():
            close(results[head][row], np.array(base[row]) + correction(layer, head, expected_reads))


def close(found: mx.array, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert np.abs(np.array(found) - expected).max() <= 2e-5 * max(1.0, np.abs(expected).max())


@settings(max_examples=25)
@given(config=configs, seed=st.integers(0, 10**6), dtype=st.sampled_from([mx.float32, mx.bfloat16, mx.float16]))
def test_an_empty_state_changes_nothing_and_keeps_the_dtype(config, seed, dtype):
    mx.random.seed(seed)
    layer = make_memory(config)
    x = mx.random.normal((1, 5, SHAPE.hidden)).astype(dtype)
    reads, state = layer.read_and_write(x, mx.zeros((1, *layer.state_shape)), Access(writing=False))
    assert not state.any()
    for head in config.delta_heads:
        base = mx.random.normal((1, 5, SHAPE.width(head))).astype(dtype)
        result = reads.correct(f"{head}_proj", base)
        assert result.dtype == dtype
        assert mx.array_equal(result, base)


def test_reading_leaves_the_state_and_writing_moves_it():
    layer = make_memory(DeltaMemConfig(rank=4))
    x, state = mx.random.normal((1, 6, SHAPE.hidden)), mx.random.normal((1, 1, 4, 4))
    _, same = layer.read_and_write(x, state, Access(writing=False))
    _, moved = layer.read_and_write(x, state, Access())
    assert mx.array_equal(same, state)
    assert distance(moved, state) > 0.01


def test_padding_neither_reads_nor_writes():
    layer = make_memory(DeltaMemConfig(rank=4))
    x, state = mx.random.normal((1, 6, SHAPE.hidden)), mx.random.normal((1, 1, 4, 4))
    mask = mx.array([[False, False, True, True, True, True]])
    base = mx.zeros((1, 6, SHAPE.q))
    for writing in (True, False):
        reads, padded = layer.read_and_write(x, state, Access(mask=mask, writing=writing))
        bare, alone = layer.read_and_write(x[:, 2:], state, Access(writing=writing))
        assert distance(padded, alone) <= 1e-6
        assert not reads.correct("q_proj", base)[:, :2].any()
        assert distance(reads.correct("q_proj", base)[:, 2:], bare.correct("q_proj", base[:, 2:])) <= 1e-6


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_a_text_in_pieces_leads_to_the_same_state_as_in_one(dtype):
    layer = make_memory(DeltaMemConfig(rank=4, num_state_heads=2, key_shift=True))
    x, state = mx.random.normal((2, 9, SHAPE.hidden)).astype(dtype), mx.random.normal((2, 2, 5, 4))
    whole = layer.read_and_write(x, state, Access())[1]
    for start, end in ((0, 1), (1, 2), (2, 6), (6, 9)):
        state = layer.read_and_write(x[:, start:end], state, Access())[1]
    # The one-token step divides by the norms after the products; bfloat16 keeps 8 bits of the projections.
    assert distance(state, whole) <= (1e-5 if dtype == mx.float32 else 5e-2)


def test_a_shifted_key_uses_the_last_token_that_was_written():
    layer = make_memory(DeltaMemConfig(rank=4, key_shift=True))
    x, state = mx.random.normal((2, 6, SHAPE.hidden)), mx.random.normal((2, 1, 5, 4))
    written = mx.array([[True, False, False, True, True, False], [False] * 6])
    _, some = layer.read_and_write(x, state, Access(written=written))
    _, alone = layer.read_and_write(x[:1, mx.array([0, 3, 4])], state[:1], Access())
    assert distance(some[:1], alone) <= 1e-6
    assert mx.array_equal(some[1], state[1])
    padded = mx.concatenate([mx.full((2, 2, SHAPE.hidden), mx.nan), x], axis=1)
    mask = mx.array([[False, False, *[True] * 6]] * 2)
    _, behind_padding = layer.read_and_write(padded, state, Access(mask=mask))
    assert distance(behind_padding, layer.read_and_write(x, state, Access())[1]) <= 1e-6


@pytest.mark.parametrize("granularity", ["message_mean", "sentence_mean"])
def test_padding_that_is_not_finite_is_no_part_of_a_mean(granularity):
    config = DeltaMemConfig(rank=4, memory_write_granularity=granularity)
    layer, x = make_memory(config), mx.random.normal((1, 4, SHAPE.hidden))
    state, ids = mx.random.normal((1, 1, 4, 4)), [[0, 0, 1, 1]]
    padded = mx.concatenate([mx.full((1, 2, SHAPE.hidden), mx.nan), x], axis=1)
    mask, padded_ids = mx.array([[False, False, *[True] * 4]]), [[0, 0, *ids[0]]]
    alone = Access(units=Spans(ids, ids, config).units(1, 4, None))
    behind = Access(mask=mask, units=Spans(padded_ids, padded_ids, config).units(1, 6, mask))
    expected = layer.read_and_write(x, state, alone)[1]
    assert distance(layer.read_and_write(padded, state, behind)[1], expected) <= 1e-6


def test_a_key_shift_with_factors_of_zero_changes_nothing():
    layer = make_memory(DeltaMemConfig(rank=4))
    shifted = DeltaMemory(DeltaMemConfig(rank=4, key_shift=True), SHAPE, dict(layer) | {"key_shift": mx.zeros((4,))})
    x, state = mx.random.normal((1, 6, SHAPE.hidden)), mx.random.normal((1, 1, 5, 4))
    _, expected = layer.read_and_write(x, state[:, :, :4], Access())
    assert mx.array_equal(shifted.read_and_write(x, state, Access())[1][:, :, :4], expected)


def test_a_replaced_weight_takes_effect():
    layer = make_memory(DeltaMemConfig(rank=4)).eval()
    x, state = mx.random.normal((1, 6, SHAPE.hidden)), mx.random.normal((1, 1, 4, 4))
    base = mx.zeros((1, 6, SHAPE.q))
    before = layer.read_and_write(x, state, Access())[0].correct("q_proj", base)
    layer.delta_q_proj = layer.delta_q_proj * 2
    after = layer.read_and_write(x, state, Access())[0].correct("q_proj", base)
    assert distance(after, 2 * before) <= 1e-5


def test_gradients_reach_every_weight():
    config = DeltaMemConfig(
        rank=4, couple_lambda=False, delta_o_rmsnorm=True, trainable_delta_scale=True, read_gate=True, key_shift=True
    )
    layer = make_memory(config)
    x, state = mx.random.normal((1, 6, SHAPE.hidden)), mx.random.normal((1, *layer.state_shape))

    def loss(parameters):
        layer.update(parameters)
        reads, end = layer.read_and_write(x, state, Access())
        bases = {f"{head}_proj": mx.zeros((1, 6, SHAPE.width(head))) for head in "qkvo"}
        return sum((reads.correct(name, base) ** 3).sum() for name, base in bases.items()) + (end**3).sum()

    gradients = mx.grad(loss)(layer.trainable_parameters())
    assert gradients.keys() == parameter_shapes(config, SHAPE).keys()
    assert all(mx.abs(gradient).max() > 0 for gradient in gradients.values())


def test_packed_and_gated_layouts_put_the_corrections_where_the_projection_has_them():
    config = DeltaMemConfig(rank=4, delta_heads=("q", "v"))
    plain = make_memory(config)
    packed = DeltaMemory(config, AttentionShape(12, 10, 6, 6, 12, packed=True), plain)
    gated = DeltaMemory(config, AttentionShape(12, 10, 6, 6, 12, gated_heads=2), plain)
    x, state = mx.random.normal((1, 6, 12)), mx.random.normal((1, 1, 4, 4))
    reads = plain.read_and_write(x, state, Access())[0]
    q, v = (reads.correct(name, mx.zeros((1, 6, width))) for name, width in (("q_proj", 10), ("v_proj", 6)))
    together = packed.read_and_write(x, state, Access())[0].correct("qkv_proj", mx.zeros((1, 6, 22)))
    assert distance(together, mx.concatenate([q, mx.zeros((1, 6, 6)), v], axis=-1)) <= 1e-6
    with_gate = gated.read_and_write(x, state, Access())[0].correct("q_proj", mx.zeros((1, 6, 20)))
    by_head = with_gate.reshape(1, 6, 2, 10)
    assert distance(by_head[..., :5].reshape(1, 6, 10), q) <= 1e-6
    assert not by_head[..., 5:].any()


def test_units_without_tokens_write_nothing():
    layer = make_memory(DeltaMemConfig(rank=4))
    x, state = mx.random.normal((1, 3, 12)), mx.random.normal((1, 1, 4, 4))
    units = WriteUnits(mx.zeros((1, 2, 3)), mx.array([[False, False]]))
    assert mx.array_equal(layer.read_and_write(x, state, Access(units=units))[1], state)


@pytest.mark.parametrize("width", [1, 5, 64])
def test_any_rank(width):
    layer = make_memory(DeltaMemConfig(rank=width))
    _, state = layer.read_and_write(mx.random.normal((1, 20, 12)), mx.zeros((1, 1, width, width)), Access())
    assert state.shape == (1, 1, width, width)
    assert mx.isfinite(state).all()


@pytest.mark.parametrize("change", ["whole", "rows"])
def test_a_weight_changed_in_place_takes_effect(change):
    layer = make_memory(DeltaMemConfig(rank=3, delta_heads=("o",)))
    layer.eval()
    x, state, base = mx.random.normal((1, 4, 12)), mx.random.normal((1, 1, 3, 3)), mx.zeros((1, 4, 12))
    before = layer.read_and_write(x, state, Access())[0].correct("o_proj", base)
    if change == "whole":
        layer.delta_o_proj *= 2
    else:
        layer.delta_o_proj[:] = layer["delta_o_proj"] * 2
    after = layer.read_and_write(x, state, Access())[0].correct("o_proj", base)
    assert distance(after, 2 * before) <= 1e-5


def test_packed_weights_are_kept_for_one_dtype_and_not_in_training():
    layer = make_memory(DeltaMemConfig(rank=3))
    layer.eval()
    x, state = mx.random.normal((1, 1, 12)), mx.zeros((1, 1, 3, 3))
    packed = layer.packed_weights(mx.float32)
    assert layer.packed_weights(mx.float32) is packed
    reads, _ = layer.read_and_write(x.astype(mx.bfloat16), state, Access())
    assert layer.packed_weights(mx.bfloat16).inputs.dtype == mx.bfloat16
    assert reads.correct("o_proj", mx.zeros((1, 1, 12), mx.bfloat16)).dtype == mx.bfloat16
    assert reads.correct("o_proj", mx.ones((1, 1, 12))).dtype == mx.float32
    layer.train()
    assert layer.packed_weights(mx.float32) is not layer.packed_weights(mx.float32)


@pytest.mark.parametrize("rankwise", [True, False])
def test_the_gates_are_those_of_the_equations(rankwise):
    layer = make_memory(DeltaMemConfig(rank=3, num_state_heads=2, couple_lambda=False, rankwise_gates=rankwise))
    x, state = mx.random.normal((2, 4, 12)), mx.zeros((2, 2, 3, 3))
    units = WriteUnits(mx.full((2, 1, 4), 0.25), mx.array([[True], [True]]))
    for access in (Access(), Access(units=units), Access(writing=False)):
        reads, _ = layer.read_and_write(x, state, access)
        assert reads.written == access.writing
        for name, found in (("beta", reads.gates.write), ("lambda", reads.gates.keep)):
            raw = np.array(x) @ np.array(layer[f"{name}_proj"]).T + np.array(layer[f"{name}_bias"])
            assert distance(found.reshape(2, 4, -1), mx.array(sigmoid(raw))) <= 1e-6


def test_gates_that_are_not_used_are_not_computed():
    layer = make_memory(DeltaMemConfig(rank=3))
    x, state = mx.random.normal((2, 4, 12)), mx.zeros((2, 1, 3, 3))
    computed = []
    layer._gates = lambda *_: computed.append(True)
    reads, _ = layer.read_and_write(x, state, Access(writing=False))
    reads.correct("o_proj", mx.zeros((2, 4, 12)))
    assert not computed
    assert [reads.gates for _ in range(2)] == [None, None] and computed == [True]


def test_means_of_half_precision_tokens_are_float32():
    layer = make_memory(DeltaMemConfig(rank=3))
    # The tokens differ by less than the precision of bfloat16.
    x = (mx.random.normal((1, 1, 12)) + mx.random.normal((1, 500, 12)) * 0.5).astype(mx.bfloat16)
    units = WriteUnits(mx.full((1, 1, 500), 1 / 500), mx.array([[True]]))
    _, state = layer.read_and_write(x, mx.zeros((1, 1, 3, 3)), Access(units=units))
    rounded = {name: value.astype(mx.bfloat16).astype(mx.float32) for name, value in layer.items() if "proj" in name}
    projected = x.astype(mx.float32) @ rounded["memory_v_proj"].T
    value = projected.astype(mx.bfloat16).astype(mx.float32).mean(axis=1)[0]
    beta = mx.sigmoid((x.astype(mx.float32) @ rounded["beta_proj"].T).mean(axis=1)[0] + layer["beta_bias"])
    assert distance(mx.linalg.norm(state[0, 0], axis=-1), mx.abs(beta * value)) <= 2e-3
