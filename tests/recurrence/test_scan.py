import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_deltamem import delta_scan
from mlx_deltamem.recurrence.definition import delta_scan_reference
from tests.conftest import distance, golden, golden_names

FORMS = [delta_scan, delta_scan_reference]


def unit(x: mx.array) -> mx.array:
    return x / mx.linalg.norm(x, axis=-1, keepdims=True)


def random_tokens(batch: int, length: int, heads: int, rank: int, hard: bool = False) -> list[mx.array]:
    """q, k, v, keep, erase, write with coupled gates; with `hard`, some betas are 1 - 1e-7 and some keeps are 0."""
    shape = (batch, length, heads, rank)
    beta = mx.sigmoid(mx.random.normal(shape) - 1.5)
    keep = 1 - beta
    if hard:
        beta = mx.where(mx.random.uniform(shape=shape) < 0.2, 1 - 1e-7, beta)
        keep = mx.where(mx.random.uniform(shape=shape) < 0.1, 0.0, 1 - beta)
    query, key = unit(mx.random.normal(shape)), unit(mx.random.normal(shape))
    return [query, key, mx.random.normal(shape), keep, beta, beta]


def in_float64(state: mx.array, tokens: list[mx.array]) -> tuple[np.ndarray, np.ndarray]:
    """The recurrence by its definition, in numpy."""
    current = np.array(state, np.float64)
    q, k, v, keep, erase, write = (np.array(x, np.float64) for x in tokens)
    reads = np.empty_like(q)
    for t in range(q.shape[1]):
        reads[:, t] = np.einsum("bhij,bhj->bhi", current, q[:, t])
        recalled = np.einsum("bhij,bhj->bhi", current, k[:, t])
        change = (write[:, t] * v[:, t] - erase[:, t] * recalled)[..., None] * k[:, t, :, None, :]
        current = keep[:, t, ..., None] * current + change
    return reads, current


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", golden_names("scan"))
def test_golden(name, form):
    _, data = golden("scan", name)
    tokens = [data[key].astype(mx.float32)[:, :, None] for key in ("q", "k", "v", "keep", "erase", "write")]
    mask = data["mask"].astype(mx.bool_) if "mask" in data else None
    reads, state = form(data["state0"].astype(mx.float32)[:, None], *tokens, mask=mask)
    tolerance = 1e-5 if name == "keep_near_one" else 2e-6
    assert distance(reads[:, :, 0], data["reads"]) <= tolerance
    assert distance(state[:, 0], data["final_state"]) <= tolerance


@pytest.mark.parametrize("heads", [1, 4])
def test_8192_tokens_against_float64(heads):
    tokens = random_tokens(1, 8192, heads, 8, hard=True)
    start = mx.random.normal((1, heads, 8, 8))
    reads, state = delta_scan(start, *tokens)
    expected_reads, expected_state = in_float64(start, tokens)
    assert np.abs(np.array(reads) - expected_reads).max() <= 2e-6
    assert np.abs(np.array(state) - expected_state).max() <= 2e-6


shapes = st.tuples(st.integers(1, 3), st.integers(0, 90), st.integers(1, 4), st.sampled_from([1, 2, 4, 8, 20, 64]))


@pytest.mark.slow
@settings(max_examples=40)
@given(shape=shapes, seed=st.integers(0, 10**6), masked=st.booleans(), cut=st.floats(0, 1))
def test_both_forms_agree_and_a_sequence_may_be_cut_anywhere(shape, seed, masked, cut):
    mx.random.seed(seed)
    batch, length, heads, rank = shape
    tokens = random_tokens(*shape, hard=True)
    start = mx.random.normal((batch, heads, rank, rank))
    mask = mx.random.uniform(shape=(batch, length)) < 0.7 if masked else None
    reads, state = delta_scan(start, *tokens, mask=mask)
    expected_reads, expected_state = delta_scan_reference(start, *tokens, mask=mask)
    border = int(cut * length)
    first, middle = delta_scan(start, *(x[:, :border] for x in tokens), mask=None if mask is None else mask[:, :border])
    second, end = delta_scan(middle, *(x[:, border:] for x in tokens), mask=None if mask is None else mask[:, border:])
    assert distance(state, expected_state) <= 1e-5
    assert distance(end, expected_state) <= 1e-5
    if length:
        assert distance(reads, expected_reads) <= 1e-5
        assert distance(mx.concatenate([first, second], axis=1), expected_reads) <= 1e-5


def test_no_tokens_leave_the_state_alone():
    start = mx.random.normal((2, 1, 4, 4))
    reads, state = delta_scan(start, *random_tokens(2, 0, 1, 4))
    assert reads.shape == (2, 0, 1, 4)
    assert mx.array_equal(state, start)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [1, 40])
def test_masked_tokens_have_no_effect_whatever_they_hold(form, length):
    tokens = random_tokens(2, length, 1, 4)
    mask = mx.random.uniform(shape=(2, length)) < 0.5
    wild = [mx.where(mask[..., None, None], x, mx.array(float("nan"))) for x in tokens]
    start = mx.random.normal((2, 1, 4, 4))
    reads, state = form(start, *wild, mask=mask)
    expected_reads, expected_state = form(start, *tokens, mask=mask)
    assert mx.array_equal(reads, expected_reads)
    assert mx.array_equal(state, expected_state)
    assert not mx.where(mask[..., None, None], 0, reads).any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("position", [0, 15, 16, 50, 99])
def test_a_keep_of_zero_forgets_what_was_before(form, position):
    query, key, value, keep, erase, write = random_tokens(1, 100, 1, 8)
    here = (mx.arange(100) == position)[None, :, None, None]
    keep, erase = mx.where(here, 0, keep), mx.where(here, 0, erase)
    start = 1e30 * mx.random.normal((1, 1, 8, 8))
    after, state = form(start, query, key, value, keep, erase, write)
    expected, expected_state = form(mx.zeros_like(start), query, key, value, keep, erase, write)
    assert mx.array_equal(after[:, position + 1 :], expected[:, position + 1 :])
    assert mx.array_equal(state, expected_state)
    assert mx.abs(after[:, : position + 1]).max() > 1e20


def test_a_state_that_overflows_is_right_before_it_does():
    query, key, *rest = random_tokens(1, 256, 1, 8)
    tokens = query, 10 * key, *rest
    start = mx.random.normal((1, 1, 8, 8))
    reads, expected = delta_scan(start, *tokens)[0], delta_scan_reference(start, *tokens)[0]
    largest = mx.cummax(mx.abs(expected).max(axis=(0, 2, 3)))
    first_huge = mx.argmax(mx.logical_not(largest < 1e30)).item()
    assert 20 < first_huge < 100
    off = mx.abs(reads - expected).max(axis=(0, 2, 3))[:first_huge]
    assert (off <= 1e-4 * largest[:first_huge]).all()


@settings(max_examples=20)
@given(
    exponent=st.integers(2, 12),
    length=st.sampled_from([2, 33, 128, 700]),
    seed=st.integers(0, 2**31),
    heads=st.integers(1, 2),
)
def test_rows_without_anything_stay_empty_however_long_the_keys_are(exponent, length, seed, heads):
    mx.random.seed(seed)
    query, key, value, *gates = random_tokens(2, length, heads, 4)
    # Rows 1 and 3 of the states hold nothing, and nothing is written to them.
    empty = mx.array([False, True, False, True])
    tokens = query, 10.0**exponent * key, mx.where(empty, 0.0, value), *gates
    start = mx.where(empty[:, None], 0.0, mx.random.normal((2, heads, 4, 4)))
    reads, state = delta_scan(start, *tokens)
    assert not reads[..., mx.array([1, 3])].any()
    assert not state[:, :, mx.array([1, 3])].any()


def test_state_and_reads_are_float32_for_bfloat16_inputs():
    tokens = [x.astype(mx.bfloat16) for x in random_tokens(1, 20, 1, 8)]
    reads, state = delta_scan(mx.zeros((1, 1, 8, 8)), *tokens)
    expected, _ = delta_scan(mx.zeros((1, 1, 8, 8)), *(x.astype(mx.float32) for x in tokens))
    assert reads.dtype == state.dtype == mx.float32
    assert mx.array_equal(reads, expected)


def test_gates_broadcast():
    q, k, v, keep, erase, write = random_tokens(2, 30, 3, 4)
    scalar = [gate[..., :1] for gate in (keep, erase, write)]
    full = [mx.broadcast_to(gate, q.shape) for gate in scalar]
    start = mx.zeros((2, 3, 4, 4))
    assert mx.array_equal(delta_scan(start, q, k, v, *scalar)[0], delta_scan(start, q, k, v, *full)[0])


def gradients(form, start, tokens, mask, weights):
    def loss(*inputs):
        reads, state = form(*inputs, mask=mask)
        return (reads * weights[0]).sum() + (state * weights[1]).sum()

    return mx.grad(loss, argnums=tuple(range(7)))(start, *tokens)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 8), (2, 37, 3, 4), (1, 256, 1, 8), (2, 64, 2, 8), (4, 46, 1, 8), (1, 70, 1, 16), (1, 20, 1, 64)]
)
@pytest.mark.parametrize("masked", [False, True])
def test_gradient_equals_that_of_the_reference(shape, masked):
    batch, length, heads, rank = shape
    tokens = random_tokens(*shape, hard=True)
    start = mx.random.normal((batch, heads, rank, rank))
    mask = mx.random.uniform(shape=(batch, length)) < 0.8 if masked else None
    weights = mx.random.normal(tokens[0].shape), mx.random.normal(start.shape)
    fast = gradients(delta_scan, start, tokens, mask, weights)
    slow = gradients(delta_scan_reference, start, tokens, mask, weights)
    for a, b in zip(fast, slow, strict=True):
        assert mx.linalg.norm(a - b) <= 1e-5 * mx.linalg.norm(b)


def second_gradients(form, of, start, tokens):
    """The gradients, in all arguments, of the squares of the gradient in one of them."""

    def squares(*inputs):
        reads, state = form(*inputs)
        return (reads * reads).sum() + (state * state).sum()

    def of_gradient(*inputs):
        found = mx.grad(squares, argnums=of)(*inputs)
        return (found * found).sum()

    return mx.grad(of_gradient, argnums=tuple(range(7)))(start, *tokens)


@pytest.mark.parametrize("shape", [(2, 1, 2, 4), (2, 3, 2, 4), (2, 40, 1, 4), (1, 5, 1, 64)])
def test_gradients_of_gradients_are_right_or_refused(shape):
    batch, length, heads, rank = shape
    tokens, start = random_tokens(*shape), mx.random.normal((batch, heads, rank, rank))
    refused = []
    for of in range(7):
        expected = second_gradients(delta_scan_reference, of, start, tokens)
        try:
            found = second_gradients(delta_scan, of, start, tokens)
        except ValueError as error:
            refused.append(of)
            assert "use mlx_deltamem.recurrence.definition.delta_scan_reference" in str(error)
        else:
            for a, b in zip(found, expected, strict=True):
                assert mx.linalg.norm(a - b) <= 1e-5 * mx.linalg.norm(b)
    # A single token is read and written by the definition. The gradient of the query is the state before the token.
    assert (1 in refused) == (length > 1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(0, 3, 1, 4), (0, 40, 1, 4), (2, 3, 0, 4), (2, 9, 1, 0), (0, 1, 1, 4), (2, 0, 1, 4)])
@pytest.mark.parametrize("masked", [False, True])
def test_empty_batches_have_empty_results_and_gradients(form, shape, masked):
    batch, length, heads, rank = shape
    inputs = mx.random.normal((batch, heads, rank, rank)), *(mx.zeros(shape, mx.bfloat16) for _ in range(6))
    mask = mx.zeros((batch, length), mx.bool_) if masked else None

    def scanned(*arrays):
        return form(*arrays, mask=mask)

    reads, state = scanned(*inputs)
    assert reads.shape == shape and mx.array_equal(state, inputs[0])
    assert reads.dtype == state.dtype == mx.float32
    _, found = mx.vjp(scanned, list(inputs), [mx.zeros_like(reads), mx.ones_like(state)])
    assert [(x.shape, x.dtype) for x in found] == [(x.shape, x.dtype) for x in inputs]
    assert mx.array_equal(found[0], mx.ones_like(state))


def test_gradient_of_a_long_sequence_needs_little_memory():
    tokens = random_tokens(1, 2048, 1, 8)
    start = mx.zeros((1, 1, 8, 8))
    mx.eval(start, tokens)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(gradients(delta_scan, start, tokens, None, (1.0, 1.0)))
    # `delta_scan_reference` takes 216 MB.
    assert mx.get_peak_memory() - before < 216e6 / 40


@pytest.mark.slow
def test_gradient_of_a_compiled_function():
    tokens = random_tokens(1, 64, 1, 8)
    start = mx.zeros((1, 1, 8, 8))

    def gradient(key):
        return mx.grad(lambda k: delta_scan(start, tokens[0], k, *tokens[2:])[0].sum())(key)

    assert distance(mx.compile(gradient)(tokens[1]), gradient(tokens[1])) <= 1e-6


@pytest.mark.parametrize("name", ["state", "q", "k", "v", "keep", "erase", "write", "mask"])
def test_arguments_that_are_no_real_arrays_are_refused(name):
    tokens = random_tokens(1, 3, 1, 4)
    inputs = dict(zip(("q", "k", "v", "keep", "erase", "write"), tokens, strict=True)) | {
        "state": mx.ones((1, 1, 4, 4))
    }
    for form in FORMS:
        for value in ([[True, True, True]], np.ones((1, 3)), "a"):
            with pytest.raises(ValueError, match=rf"got a \w+ as {name}; expected an array of MLX"):
                form(**inputs | {name: value})
        with pytest.raises(ValueError, match=f"got complex numbers as {name}; expected real ones"):
            form(**inputs | {name: mx.ones((1, 3), mx.complex64)})


def test_a_gate_may_be_a_number():
    q, k, v, *_ = random_tokens(1, 3, 1, 4)
    ones, start = mx.ones_like(q), mx.random.normal((1, 1, 4, 4))
    assert mx.array_equal(
        delta_scan(start, q, k, v, 1, 0.5, 1.0)[1], delta_scan(start, q, k, v, ones, ones / 2, ones)[1]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": (2, 5, 4)}, "expected \\[B, T, H, r\\]"),
        ({"state": (2, 1, 4, 8)}, "expected the state to be \\(2, 1, 4, 4\\)"),
        ({"v": (2, 6, 1, 4)}, "expected all \\(2, 5, 1, 4\\)"),
        ({"mask": (2, 6)}, "expected the mask to be \\(2, 5\\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change, message):
    shapes = {"state": (2, 1, 4, 4), **dict.fromkeys(("q", "k", "v", "keep", "erase", "write"), (2, 5, 1, 4))} | change
    with pytest.raises(ValueError, match=message):
        delta_scan(**{name: mx.zeros(shape) for name, shape in shapes.items()})
