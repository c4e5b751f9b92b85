import mlx.core as mx
import pytest

from mlx_deltamem.recurrence import chunked, sequential
from mlx_deltamem.recurrence.definition import delta_scan_reference
from mlx_deltamem.recurrence.sequential import sequential_scan
from tests.conftest import distance
from tests.recurrence.test_scan import gradients, random_tokens


def sequential_form(state, q, k, v, keep, erase, write, mask=None):
    """`sequential_scan` with the arguments of `delta_scan`."""
    assert mask is None
    return sequential_scan(state, q, k, write * v, keep, erase)


# The border of a block of the states, a last block of one token, and all tokens in one block.
@pytest.mark.parametrize("tokens_in_a_block", [1, 4, 5, 100])
@pytest.mark.parametrize("as_on_gpu", [False, True])
def test_results_and_gradients_are_those_of_the_definition(tokens_in_a_block, as_on_gpu, monkeypatch):
    batch, _, heads, rank = shape = 2, 13, 2, 8
    monkeypatch.setattr(sequential, "_BLOCK", tokens_in_a_block * batch * heads * rank**2)
    monkeypatch.setattr(sequential, "on_gpu", lambda: as_on_gpu)
    tokens, start = random_tokens(*shape, hard=True), mx.random.normal((batch, heads, rank, rank))
    for found, expected in zip(sequential_form(start, *tokens), delta_scan_reference(start, *tokens), strict=True):
        assert found.shape == expected.shape
        # Rounding in float32.
        assert distance(found, expected) <= 1e-6
    weights = mx.random.normal(tokens[0].shape), mx.random.normal(start.shape)
    fast = gradients(sequential_form, start, tokens, None, weights)
    slow = gradients(delta_scan_reference, start, tokens, None, weights)
    for found, expected in zip(fast, slow, strict=True):
        assert mx.linalg.norm(found - expected) <= 1e-5 * mx.linalg.norm(expected)


@pytest.mark.parametrize(
    ("shape", "sequential"),
    [
        ((1, 34, 1, 8), False),  # The released adapter.
        ((1, 34, 1, 32), True),  # The adapter of the demo, a short message.
        ((4, 80, 1, 32), True),  # A batch of its training.
        ((1, 2048, 1, 32), False),
        ((1, 3, 1, 8), True),
    ],
)
def test_large_or_many_states_are_run_one_token_after_the_other(shape, sequential):
    assert (chunked.chunk_count(shape) == 1) == sequential
