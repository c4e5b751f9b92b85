"""One token of several layers at once, against the definition for each layer and row."""

import copy

import mlx.core as mx
import pytest

from mlx_deltamem.core.key_shift import token_before
from mlx_deltamem.recurrence.ops import OpsEngine
from tests.conftest import distance
from tests.recurrence.kernel_cases import CASES, Case, by_definition, make_arrays, tolerance, with_garbage

LAYERS = 3
# The cases of the kernels, each with and without rows that are not written.
CASES_OF_ONE = [
    Case(case.variant, case.dtype, (1,), masked, batch)
    for case in CASES
    for masked in (False, True)
    for batch in (1, 3)
]


def unique(cases: list[Case]) -> list[Case]:
    return list(dict.fromkeys(cases))


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("case", unique(CASES_OF_ONE), ids=lambda case: f"{case}-b{case.batch}")
def test_all_layers_are_written_as_by_the_definition(case, shifted):
    arrays = [make_arrays(case, 1) for _ in range(LAYERS)]
    # All layers have one mask, in which the first row is not written.
    written, width = arrays[0][3], case.variant.width
    rows = [mx.random.normal((case.batch, 1, width)) for _ in arrays]
    factors = mx.random.normal((LAYERS, width))
    expected, states = [], []
    for (projected, bias, matrix, _), row, factor in zip(arrays, rows, factors, strict=True):
        last = row.astype(projected.dtype)
        seen = with_garbage(projected, written) if written is None else mx.where(written[..., None], projected, 0)
        if shifted:
            queries, keys, others = mx.split(seen.astype(projected.dtype), [width, 2 * width], axis=-1)
            before, last = token_before(queries, last, written)
            seen = mx.concatenate([queries, keys + factor.astype(projected.dtype) * before, others], axis=-1)
        after = by_definition(case, seen.astype(projected.dtype), bias, matrix, written)[1]
        by_head = (case.batch, case.variant.heads, 1, case.variant.rank)
        if shifted:
            first = row.astype(projected.dtype).astype(mx.float32).reshape(by_head)
            states.append(mx.concatenate([matrix, first], axis=2))
            after = mx.concatenate([after, last.astype(mx.float32).reshape(by_head)], axis=2)
        else:
            states.append(matrix)
        expected.append(after)
    whole, *found = OpsEngine(case.variant).write(
        [with_garbage(projected, written) for projected, *_ in arrays],
        mx.concatenate(states),
        mx.stack([bias for _, bias, *_ in arrays]),
        factors if shifted else None,
        written,
    )
    assert len(found) == LAYERS
    assert distance(whole, mx.concatenate(found)) == 0
    for layer, after in enumerate(expected):
        assert distance(found[layer], after) <= tolerance(case.dtype, after)
        if written is not None:
            kept = mx.where(written[..., None, None], 0.0, found[layer] - states[layer])
            assert distance(kept, mx.zeros_like(kept)) == 0


def test_a_copy_of_a_model_may_have_the_engine():
    engine = OpsEngine(CASES[0].variant)
    projected, bias, state, _ = make_arrays(CASES[0], 1)
    engine.scan(projected, bias, state)
    assert copy.deepcopy(engine) == engine
