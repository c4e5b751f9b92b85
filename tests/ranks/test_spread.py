"""A model that several ranks hold together is the whole model: logits, memory, chats and their files."""

import json
from pathlib import Path

import mlx_lm
import pytest

from mlx_deltamem import ChatSession, load
from tests.ranks.launched import run_ranks
from tests.ranks.models import make_adapter, make_model

# mlx-lm has no pipeline for llama and qwen3.
_CASES = {
    "llama": ("llama", None, False),
    "llama-4bit": ("llama", 4, False),
    "qwen3": ("qwen3", None, False),
    "qwen3-4bit": ("qwen3", 4, False),
    "moe": ("qwen3_moe", None, False),
    "moe-4bit": ("qwen3_moe", 4, False),
    "moe-pipeline": ("qwen3_moe", None, True),
    "moe-pipeline-4bit": ("qwen3_moe", 4, True),
    "qwen2-pipeline": ("qwen2", None, True),
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> Path:
    """A folder for each case: a model, an adapter, and a chat that one process has begun."""
    folder = tmp_path_factory.mktemp("cases")
    for name, (family, bits, pipeline) in _CASES.items():
        model = make_model(folder / name / "model", family, bits)
        # Two layers without a memory, on both sides of a pipeline; heads that are not in use.
        layers = (0, 2, 3) if pipeline else ()
        adapter = make_adapter(
            folder / name / "adapter",
            mlx_lm.load(str(model))[0],
            rank=4,
            num_state_heads=2,
            delta_heads=("q", "v", "o"),
            target_layers=layers,
            key_shift=bits is not None,
        )
        chat = ChatSession(*load(model, adapter=adapter), system="Be brief.")
        chat.send("My name is Anna.", 6)
        chat.save(folder / name / "chat.safetensors", save_kv=True)
        (folder / name / "case.json").write_text(json.dumps({"pipeline": pipeline}))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_a_spread_model_is_the_whole_model(cases, count):
    ranks = run_ranks(count, "tests.ranks.spread_checks", cases, *_CASES, timeout=600)
    assert all(rank.code == 0 for rank in ranks), [(rank.code, rank.err) for rank in ranks]


@pytest.mark.slow
def test_a_chat_goes_from_ranks_to_ranks(cases):
    """Written by 2 ranks and by 3, each file goes on in a process that has the whole model, with the same words."""
    replies = set()
    for count in (2, 3):
        file = cases / "moe-pipeline" / f"by-{count}.safetensors"
        if not file.exists():
            pytest.skip("the file is made by the test above")
        chat = ChatSession.load(
            *load(cases / "moe-pipeline" / "model", adapter=cases / "moe-pipeline" / "adapter"), file
        )
        replies.add(chat.send("And then?", 6))
    assert len(replies) == 1
