"""Tokens of several chats in one pass, compared with a pass for each."""

import mlx.core as mx
import pytest

from mlx_deltamem import make_prompt_cache, memory
from mlx_deltamem.core.use import writing
from mlx_deltamem.sessions.reading.together import run_together
from tests.conftest import distance
from tests.sessions.batch.test_reply_batch import TOLERANCE
from tests.sessions.test_session import every_kind, loaded


@every_kind
@pytest.mark.parametrize("lengths", [(1, 1), (1, 6, 3), (4, 4)])
def test_as_a_pass_for_each(kind, lengths):
    model, _ = loaded(kind)
    caches = [make_prompt_cache(model) for _ in lengths]
    alone = [make_prompt_cache(model) for _ in lengths]
    # The first pass finds empty caches, the second one caches of different lengths.
    for part in range(2):
        ids = [[(7 * row + 3 * place + part) % 90 + 3 for place in range(n)] for row, n in enumerate(lengths)]
        written = [[(row + place) % 3 > 0 for place in range(n)] for row, n in enumerate(lengths)]
        logits = run_together(model, caches, ids, written)
        for row, cache in enumerate(alone):
            with writing(model, mx.array([written[row]])):
                expected = model(mx.array([ids[row]]), cache=cache)[:, -1]
            assert distance(logits[row : row + 1], expected) <= TOLERANCE * mx.abs(expected).max().item()
            for layer, state in memory(cache).items():
                assert distance(memory(caches[row])[layer], state) <= TOLERANCE
