"""Run by several ranks: compare each model that they hold together with the whole model.

The arguments are a folder with cases, as `test_spread.py` makes them, and the names of the cases.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.sample_utils import greedy_sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper

import tools.openblas  # noqa: F401
from mlx_deltamem import ChatSession, detach, load, make_prompt_cache
from mlx_deltamem.adapters.fingerprint import origin_of
from mlx_deltamem.adapters.spread_loading import load_spread
from mlx_deltamem.core.spread import same_tokens, whole_states
from mlx_deltamem.ranks.joining import join
from mlx_deltamem.ranks.world import World

# The sums over the parts of a layer have another order. Logits are below 10, and float32 rounds at 1e-6 of that; the
# rest is for the layers and tokens that follow.
CLOSE = 1e-4
_IDS = mx.array([[5, 9, 33, 2, 17, 8, 60, 11, 3]])


def main() -> None:
    world, folder = join(), Path(sys.argv[1])
    for name in sys.argv[2:]:
        case = json.loads((folder / name / "case.json").read_text())
        model, adapter = folder / name / "model", folder / name / "adapter"
        whole, tokenizer = load(model, adapter=adapter)
        spread, _ = load_spread(model, adapter, world, case["pipeline"])
        assert origin_of(spread, tokenizer) == origin_of(whole, tokenizer), name
        check_logits(name, whole, spread)
        check_chat(folder / name, whole, spread, tokenizer, world)
        check_traffic(spread, case["pipeline"])
    world.leave(0)


def check_logits(name: str, whole: nn.Module, spread: nn.Module) -> None:
    """A text in two calls has the logits, and leaves the memory, that it has in one call of the whole model."""
    expected_cache = make_prompt_cache(whole)
    expected = whole(_IDS, cache=expected_cache)
    cache = make_prompt_cache(spread)
    logits = mx.concatenate([spread(_IDS[:, :5], cache=cache), spread(_IDS[:, 5:], cache=cache)], axis=1)
    mx.eval(logits)
    assert mx.abs(logits - expected).max() <= CLOSE, (name, mx.abs(logits - expected).max())
    states = whole_states(spread, cache[-1].cache)
    assert_same_memory(dict(enumerate(expected_cache[-1].cache)), dict(enumerate(states)))


def check_chat(folder: Path, whole: nn.Module, spread: nn.Module, tokenizer: TokenizerWrapper, world: World) -> None:
    """A chat that one process has saved goes on in the ranks, and what they save goes on in one process."""
    expected = ChatSession.load(whole, tokenizer, folder / "chat.safetensors")
    chat = ChatSession.load(spread, tokenizer, folder / "chat.safetensors")
    for text in ("And what else?", "Go on."):
        assert chat.send(text, 4) == expected.send(text, 4)
        assert_same_memory(expected.memory, chat.memory)
    assert chat.regenerate(3) == expected.regenerate(3)
    assert chat.undo() == expected.undo()
    chat.remember("Anna has a dog.")
    expected.remember("Anna has a dog.")
    assert_same_memory(expected.memory, chat.memory)
    for ours, theirs in zip(chat.drift, expected.drift, strict=True):
        assert ours.kept.keys() == theirs.kept.keys()
        assert max(abs(ours.kept[layer] - theirs.kept[layer]) for layer in theirs.kept) <= CLOSE
        assert max(abs(ours.changed[layer] - theirs.changed[layer]) for layer in theirs.changed) <= CLOSE
    file = folder / f"by-{world.size}.safetensors"
    chat.save(file)
    again = ChatSession.load(whole, tokenizer, file)
    assert again.messages == expected.messages
    assert_same_memory(expected.memory, again.memory)
    assert again.send("Yes?", 3) == expected.send("Yes?", 3)


def check_traffic(spread: nn.Module, pipeline: bool) -> None:
    """A token takes as many bytes between the ranks as without a memory, and 4 for the choice of the token."""

    def one_token() -> list[int]:
        with counted() as sizes:
            logits = spread(mx.array([[7]]), cache=make_prompt_cache(spread))
            mx.eval(logits)
        return sizes

    with_memory = one_token()
    with counted() as sizes:
        mx.eval(same_tokens(spread, greedy_sampler)(mx.zeros((1, 8))))
    assert sizes == [4]
    detach(spread)
    assert with_memory == one_token()
    if not pipeline:
        # Two sums in each layer, of an activation: the calculation in DISTRIBUTED.md.
        assert with_memory == [spread.args.hidden_size * 4] * (2 * len(spread.layers))


@contextmanager
def counted() -> Iterator[list[int]]:
    """The sizes in bytes of what goes between ranks within a context."""
    sizes: list[int] = []

    def counting(operation):
        def run(array, *args, **kwargs):
            sizes.append(array.nbytes)
            return operation(array, *args, **kwargs)

        return run

    names = ("all_sum", "all_gather", "send", "recv_like")
    before = {name: getattr(mx.distributed, name) for name in names}
    for name, operation in before.items():
        setattr(mx.distributed, name, counting(operation))
    try:
        yield sizes
    finally:
        for name, operation in before.items():
            setattr(mx.distributed, name, operation)


def assert_same_memory(expected: dict[int, mx.array], found: dict[int, mx.array]) -> None:
    assert expected.keys() == found.keys()
    for layer, state in expected.items():
        if state.size:
            assert mx.abs(found[layer] - state).max() <= CLOSE


if __name__ == "__main__":
    main()
