"""The task `health`: exact for adapters without an effect, and equal to the definition for others."""

import math
from itertools import pairwise
from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tokenizer_utils import TokenizerWrapper
from transformers import PreTrainedTokenizerFast

from mlx_deltamem import attach, load, read_only
from mlx_deltamem.adapters.folder import load_adapter
from mlx_deltamem.core.cache import make_prompt_cache
from mlx_deltamem.core.model import attached_attention, detach
from mlx_deltamem.core.use import current_use
from mlx_deltamem.evaluation.tasks import health
from mlx_deltamem.evaluation.tasks.health import CARRIED_READ, CARRIED_WRITTEN, WAYS, WRITTEN, Checkup, Losses
from mlx_deltamem.evaluation.tasks.health_report import (
    STEPS,
    examine,
    health_document,
    health_section,
    health_tables,
    ratios,
)
from mlx_deltamem.evaluation.tasks.natural import natural_prompts, natural_prose
from tests.conftest import adapter, backbone, randomise
from tests.training.runs import same

# By token, and by message.
ADAPTERS = ("qwen3_tsw_qo", "qwen3_ssw_msg")
TEXTS, PROMPTS = 5, 4


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """Texts of different lengths, all of them short."""
    texts = tuple(text[: 50 + 10 * place] for place, text in enumerate(natural_prose()))
    monkeypatch.setattr(health, "natural_prose", lambda: texts)


@pytest.fixture(scope="module")
def plain():
    return load(backbone())


@pytest.fixture(params=ADAPTERS)
def attached(request, plain):
    model, tokenizer = plain
    attach(model, load_adapter(adapter(request.param)))
    yield model, tokenizer
    detach(model)


@pytest.fixture
def one(plain):
    model, tokenizer = plain
    attach(model, load_adapter(adapter()))
    yield model, tokenizer
    detach(model)


def switch_off(model: nn.Module) -> None:
    """Make the output heads zero: whatever is read corrects nothing."""
    for attention in attached_attention(model).values():
        for name in [name for name in attention.delta_mem if name.startswith("delta_") and name.endswith("_proj")]:
            attention.delta_mem[name] = mx.zeros_like(attention.delta_mem[name])


def mean_loss(model: nn.Module, ids: list[int], cache: list, writing: bool) -> float:
    """By definition: token by token, with keys and values."""
    total = 0.0
    for token, following in pairwise(ids):
        if writing:
            logits = model(mx.array([[token]]), cache=cache)
        else:
            with read_only(model):
                logits = model(mx.array([[token]]), cache=cache)
        total += nn.losses.cross_entropy(logits[0, -1:].astype(mx.float32), mx.array([following])).item()
    return total


@pytest.mark.slow
def test_an_adapter_that_corrects_nothing_does_no_harm(attached):
    model, tokenizer = attached
    switch_off(model)
    checkup = Checkup(model, tokenizer, TEXTS, PROMPTS)
    assert checkup.losses().ratios == dict.fromkeys(WAYS, 1.0)
    replies = checkup.replies()
    assert [each.prompt for each in replies] == list(natural_prompts()[:PROMPTS])
    assert all(each.equal and each.adapted.text == each.frozen.text for each in replies)
    alike = checkup.alike()
    assert all(map(all, alike)) and [len(each) for each in alike] == [each.frozen.tokens for each in replies]


@pytest.mark.slow
def test_the_losses_are_those_of_single_tokens(attached):
    model, tokenizer = attached
    checkup = Checkup(model, tokenizer, TEXTS, 1)
    losses = checkup.losses()
    # The last text is alone in its batch. All texts have different lengths.
    for place in (1, TEXTS - 1):
        ids = tokenizer.encode(health.natural_prose()[place])
        carried = [state[place : place + 1] for state in checkup.carried_states()]
        assert losses.tokens[place] == len(ids) - 1
        for found, told, writing in (
            (losses.frozen, False, False),
            (losses.adapted[WRITTEN], False, True),
            (losses.adapted[CARRIED_READ], True, False),
            (losses.adapted[CARRIED_WRITTEN], True, True),
        ):
            cache = make_prompt_cache(model)
            if told:
                cache[-1].cache = list(carried)
            assert found[place] == pytest.approx(mean_loss(model, ids, cache, writing), rel=1e-3)
    assert losses.ratios[CARRIED_READ] != losses.ratios[CARRIED_WRITTEN] != losses.ratios[WRITTEN]


def test_the_frozen_model_is_the_one_without_an_adapter(one):
    model, tokenizer = one
    checkup = Checkup(model, tokenizer, 2, 1)
    frozen = checkup.losses().frozen
    detach(model)
    for ids, found in zip(map(tokenizer.encode, health.natural_prose()[:2]), frozen, strict=True):
        logits = model(mx.array([ids]))[0, :-1].astype(mx.float32)
        assert nn.losses.cross_entropy(logits, mx.array(ids[1:])).sum().item() == pytest.approx(found, rel=1e-5)
    attach(model, load_adapter(adapter()))


def test_a_damaged_adapter_shows(one):
    model, tokenizer = one
    randomise(model, 3.0)
    checkup = Checkup(model, tokenizer, 2, PROMPTS)
    assert max(checkup.losses().ratios.values()) > 1.5
    assert not all(each.equal for each in checkup.replies())
    assert not all(map(all, checkup.alike()))


@pytest.mark.slow
def test_the_adapter_may_change_between_two_looks(one):
    model, tokenizer = one
    checkup = Checkup(model, tokenizer, 2, PROMPTS)
    before, first = checkup.losses(), checkup.replies()
    switch_off(model)
    after, second = checkup.losses(), checkup.replies()
    assert before.ratios != after.ratios == dict.fromkeys(WAYS, 1.0)
    assert [each.frozen for each in first] == [each.frozen for each in second] == [each.adapted for each in second]


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_as_before(attached, training):
    model, tokenizer = attached
    model.train(training)
    before, random = dict(tree_flatten(model.parameters())), mx.random.state[0].tolist()
    weights = {name: mx.array(weight) for name, weight in before.items()}
    with read_only(model):
        use = current_use(model)
        checkup = Checkup(model, tokenizer, 2, 2)
        inside = checkup.losses().ratios
        checkup.replies(), checkup.alike()
        assert current_use(model) == use
    assert inside == checkup.losses().ratios
    assert {module.training for module in model.modules()} == {training}
    assert all(dict(tree_flatten(model.parameters()))[name] is weight for name, weight in before.items())
    assert same(before, weights)
    assert mx.random.state[0].tolist() == random
    model.eval()


def test_without_a_chat_template_prompts_are_plain_text(one):
    model, with_template = one
    tokenizer = TokenizerWrapper(PreTrainedTokenizerFast(tokenizer_object=with_template.backend_tokenizer))
    checkup = Checkup(model, tokenizer, 2, PROMPTS)
    assert [each.ids for each in checkup._asked] == [tokenizer.encode(each) for each in natural_prompts()[:PROMPTS]]
    assert len(checkup.replies()) == PROMPTS and len(checkup.alike()) == PROMPTS
    switch_off(model)
    assert checkup.losses().ratios == dict.fromkeys(WAYS, 1.0)


def test_without_an_adapter_there_is_nothing_to_measure(plain):
    with pytest.raises(ValueError, match=r"the model has no adapter; call attach\(model, adapter\) first"):
        Checkup(*plain)


def test_ratios_are_of_all_tokens_and_numbers_that_are_none_are_infinite():
    tokens, frozen = np.array([1, 3]), np.array([2.0, 6.0])
    adapted = {
        "one": frozen + np.array([0.0, 4.0]),
        "same": frozen,
        "none": np.array([2.0, math.nan]),
        "far": frozen + 1e6,
    }
    found = Losses(tokens, frozen, adapted)
    assert found.ratios == {"one": pytest.approx(math.e), "same": 1.0, "none": math.inf, "far": math.inf}
    one = ratios(found, 0)["one"]
    assert (one.low, one.texts) == (1.0, 2) and one.high == pytest.approx(math.exp(4 / 3))
    assert (ratios(found, 0)["same"].low, ratios(found, 0)["same"].high) == (1.0, 1.0)
    assert ratios(found, 0)["none"].high == math.inf


def test_the_findings(one):
    model, tokenizer = one
    steps = []
    found = examine(Checkup(model, tokenizer, 3, PROMPTS), 0, lambda what, more: steps.append((what, more)))
    assert steps == [(f"health, {step}", more) for step in STEPS for more in (0, 1)]
    document = health_document(found)
    assert [each["memory"] for each in document["perplexity"]] == list(WAYS)
    for each in document["perplexity"]:
        assert each["interval"][0] <= each["ratio"] <= each["interval"][1] and each["texts"] == 3
    assert document["replies_equal"]["value"] == 100 * sum(each["equal"] for each in document["replies"]) / PROMPTS
    assert [each["prompt"] for each in document["replies"]] == list(natural_prompts()[:PROMPTS])
    text = health_section(found)
    assert text.count("| no | ") + text.count("| yes | ") == PROMPTS
    assert "of at most 24 tokens" in text
    assert [table.row_count for table in health_tables(found)] == [3, 2]


def test_a_ratio_that_is_no_number_is_null_in_the_document():
    answered = SimpleNamespace(
        prompt="a", frozen=SimpleNamespace(text=""), adapted=SimpleNamespace(text=""), equal=True
    )
    checkup = SimpleNamespace(
        losses=lambda: Losses(np.array([2]), np.array([1.0]), {WRITTEN: np.array([math.nan])}),
        replies=lambda: [answered],
        alike=lambda: [[True]],
    )
    found = examine(checkup, 0, lambda *_: None)
    (each,) = health_document(found)["perplexity"]
    assert (each["ratio"], each["interval"]) == (None, [None, None])
    assert found.equal.value == found.alike.value == 100
