"""The loss of whole episodes and its gradient: against finite differences, the reference scan and single episodes."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from mlx_deltamem import DeltaMemConfig, attach, load, make_prompt_cache, read_only, write_spans
from mlx_deltamem.core.cache import PromptCache
from mlx_deltamem.core.reads import Reads
from mlx_deltamem.core.use import observing, write_mask
from mlx_deltamem.recall import EpisodeSettings, make_episode
from mlx_deltamem.recurrence import ops
from mlx_deltamem.recurrence.definition import delta_scan_reference
from mlx_deltamem.sessions.text.segments import NO_SEGMENTS
from mlx_deltamem.training import grouping
from mlx_deltamem.training.batch import Batch, Pass
from mlx_deltamem.training.batches import BatchMaker
from mlx_deltamem.training.episode import Episode, Question
from mlx_deltamem.training.episodes import EpisodeMaker
from mlx_deltamem.training.logits import head_at_positions
from mlx_deltamem.training.loss import EpisodeModel, answer_losses, divergence
from mlx_deltamem.training.optimizer import ClippedOptimizer, clipped_optimizer
from mlx_deltamem.training.passes import corrupted
from mlx_deltamem.training.prepare import freeze_all_but_adapter
from mlx_deltamem.training.records import records_of_rows
from mlx_deltamem.training.rules import EpisodeRules
from mlx_deltamem.training.settings import DEFAULT_ADAPTER
from mlx_deltamem.training.terms import LossTerms
from mlx_deltamem.training.written import Written
from tests.conftest import backbone, distance
from tests.double import use_float64
from tests.families import tiny_model
from tests.training.cases import (
    VARIANTS,
    VOCABULARY,
    as_read,
    episode,
    episode_model,
    gradients,
    half_written,
    in_training,
    in_turns,
    towards,
)

# Every term, each large enough for its gradient to matter.
EVERYTHING = LossTerms(
    sparsity=1.0,
    sparsity_pass="write",
    contrast_zeroed=0.5,
    contrast_corrupted=0.7,
    contrast_margin=0.5,
    teacher_kl=0.3,
)
READ_SPARSITY = LossTerms(sparsity=2.0, sparsity_target=0.3)
TERMS = {
    "none": LossTerms(sparsity=0.0),
    "read sparsity": READ_SPARSITY,
    "write sparsity": LossTerms(sparsity=2.0, sparsity_pass="write"),
    "zeroed": LossTerms(sparsity=0.0, contrast_zeroed=1.5, contrast_margin=0.3),
    "corrupted": LossTerms(sparsity=0.0, contrast_corrupted=1.5, contrast_margin=0.3),
    "teacher": LossTerms(sparsity=0.0, teacher_kl=2.0),
}
EPISODES = [episode(11, (9, 3), (5, 2)), episode(3, (6, 2)), episode(14, (7, 4), seed=1)]
# Episodes with written questions, one of them without a history.
WRITTEN = [as_read(each) for each in (*EPISODES, replace(EPISODES[1], history=NO_SEGMENTS))]
# Episodes with partly written histories and questions.
MASKED = [half_written(each) for each in EPISODES]
# Episodes with histories in several passes, and one in a single pass.
TURNS = [
    in_turns(as_read(EPISODES[0]), 4, 7),
    half_written(EPISODES[1]),
    in_turns(half_written(EPISODES[2]), 5, 3, 6),
]
# Episodes with other targets.
TARGETS = [towards(EPISODES[0], "frozen", 2.0), towards(EPISODES[1], "answer"), EPISODES[2]]
# Small episodes, for tests that compute thousands of losses.
FEW = [episode(8, (7, 3), (5, 2)), episode(5, (6, 2))]
VALUE_WEIGHT = 4.0
every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_token_variant = pytest.mark.parametrize(
    "variant", [name for name, config in VARIANTS.items() if config.memory_write_granularity == "token"]
)


def batch_of(module: EpisodeModel, episodes: list[Episode] = EPISODES) -> Batch:
    return BatchMaker(module.model.attachment.config, VALUE_WEIGHT).batch(episodes)


def loss_of(module: EpisodeModel, batch: Batch) -> Callable[[], mx.array]:
    return lambda: module(batch)[0]


# Gradients


@pytest.mark.slow
@every_variant
def test_gradients_are_those_of_finite_differences(variant, monkeypatch):
    module = episode_model(VARIANTS[variant], EVERYTHING)
    batch = batch_of(module, FEW)
    in_float64(module, monkeypatch)
    found = gradients(module, loss_of(module, batch))
    # The weights have no effect on the frozen logits, so they are computed once. The next test does not do this.
    frozen = {id(asked): module._frozen(asked) for asked in (batch.asked, batch.context)}
    monkeypatch.setattr(module, "_frozen", lambda asked: frozen[id(asked)])
    first = {name: gradient for name, gradient in found.items() if ".layers.0." in name}
    check_finite_differences(module, batch, first)


@pytest.mark.slow
@pytest.mark.parametrize("terms", [EVERYTHING, READ_SPARSITY], ids=["every term", "read sparsity"])
def test_gradients_of_all_layers_are_those_of_finite_differences(terms, monkeypatch):
    module = episode_model(terms=terms)
    batch = batch_of(module, FEW)
    in_float64(module, monkeypatch)
    found = gradients(module, loss_of(module, batch))
    check_finite_differences(module, batch, found)


@pytest.mark.slow
@every_token_variant
def test_gradients_of_written_texts_are_those_of_finite_differences(variant, monkeypatch):
    module = episode_model(VARIANTS[variant])
    batch = batch_of(module, [as_read(each) for each in FEW])
    in_float64(module, monkeypatch)
    found = gradients(module, loss_of(module, batch))
    check_finite_differences(module, batch, {name: found[name] for name in found if ".layers.0." in name})


@pytest.mark.slow
@every_token_variant
def test_gradients_of_partly_written_texts_are_those_of_finite_differences(variant, monkeypatch):
    module = episode_model(VARIANTS[variant])
    batch = batch_of(module, [half_written(each) for each in FEW])
    in_float64(module, monkeypatch)
    found = gradients(module, loss_of(module, batch))
    first = {name: found[name] for name in found if ".layers.0." in name}
    check_finite_differences(module, batch, first)


def check_finite_differences(module: EpisodeModel, batch: Batch, found: dict[str, mx.array]) -> None:
    """Compare gradients with central differences, both in float64, at 20 weights of every tensor."""
    weights = dict(tree_flatten(module.trainable_parameters()))
    generator, step = np.random.default_rng(0), 1e-6
    for name, gradient in found.items():
        slopes, values = np.array(gradient), np.array(weights[name])
        for place in generator.permutation(values.size)[:20]:
            losses = []
            for sign in (1, -1):
                moved = values.copy()
                moved.flat[place] += sign * step
                module.update(tree_unflatten([(name, mx.array(moved, mx.float64))]))
                losses.append(module(batch)[0].item())
            expected = (losses[0] - losses[1]) / (2 * step)
            # A difference of losses is known to some 1e-15 / step, and errs by the third derivative times
            # step²: both are small beside the largest gradient.
            error = abs(slopes.flat[place] - expected) / np.abs(slopes).max()
            assert error <= 1e-6, (name, place, error)
        module.update(tree_unflatten([(name, weights[name])]))


@every_variant
def test_gradients_are_those_of_the_reference_scan(variant, monkeypatch):
    check_reference_scan(variant, EPISODES, monkeypatch)


@pytest.mark.slow
@every_token_variant
def test_gradients_of_written_texts_are_those_of_the_reference_scan(variant, monkeypatch):
    check_reference_scan(variant, WRITTEN, monkeypatch)


@pytest.mark.slow
@every_token_variant
def test_gradients_of_partly_written_texts_are_those_of_the_reference_scan(variant, monkeypatch):
    check_reference_scan(variant, MASKED, monkeypatch)


def test_gradients_of_turns_are_those_of_the_reference_scan(monkeypatch):
    check_reference_scan("TSW", TURNS, monkeypatch)


def check_reference_scan(variant: str, episodes: list[Episode], monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare the gradients of a batch, every term in its loss, with those through the reference scan."""
    module = episode_model(VARIANTS[variant], EVERYTHING)
    loss = loss_of(module, batch_of(module, episodes))
    in_float64(module, monkeypatch)
    found = gradients(module, loss)
    monkeypatch.setattr(ops, "delta_scan", delta_scan_reference)
    check_gradients(found, gradients(module, loss), 1e-9)


def in_float64(module: EpisodeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute in float64 from here on, where the order of a sum does not matter."""
    use_float64(monkeypatch)
    module.update(tree_map(lambda array: array.astype(mx.float64), module.parameters()))


def check_gradients(found: dict[str, mx.array], expected: dict[str, mx.array], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        largest = mx.abs(gradient).max().item()
        assert largest > 0, name
        assert distance(found[name], gradient) <= tolerance * largest, name


# Batches and single episodes


@pytest.mark.slow
@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("variant", ["TSW", "SSW", "sentence_mean", "MSW"])
def test_a_batch_equals_its_single_episodes(variant, terms, monkeypatch):
    check_single_episodes(monkeypatch, episode_model(VARIANTS[variant], TERMS[terms]))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_next", "gemma3_text", "qwen3_moe", "gpt_oss"])
def test_a_batch_equals_its_single_episodes_in_other_families(family):
    module = in_training(tiny_model(family), VARIANTS["TSW"], READ_SPARSITY, scale=0.1)
    # In float32, since some of their operations have no float64 in MLX. A batch adds numbers in another order, and
    # each of the layers enlarges the difference of one rounding, 6e-8, several times.
    check_batch(module, batch_of(module, EPISODES), EPISODES, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("terms", TERMS)
def test_a_batch_of_written_texts_equals_its_single_episodes(terms, monkeypatch):
    check_single_episodes(monkeypatch, episode_model(terms=TERMS[terms]), WRITTEN)


@pytest.mark.slow
@pytest.mark.parametrize("terms", TERMS)
def test_a_batch_of_partly_written_texts_equals_its_single_episodes(terms, monkeypatch):
    check_single_episodes(monkeypatch, episode_model(terms=TERMS[terms]), [*MASKED, as_read(EPISODES[1])])


@pytest.mark.slow
@pytest.mark.parametrize("terms", TERMS)
def test_a_batch_of_turns_equals_its_single_episodes(terms, monkeypatch):
    check_single_episodes(monkeypatch, episode_model(terms=TERMS[terms]), TURNS)


@pytest.mark.parametrize("variant", ["SSW", "sentence_mean"])
def test_a_batch_of_partly_written_histories_equals_its_single_episodes(variant, monkeypatch):
    episodes = [replace(each, written=half_written(each).written) for each in EPISODES[::2]]
    check_single_episodes(monkeypatch, episode_model(VARIANTS[variant], TERMS["write sparsity"]), episodes)


def check_single_episodes(
    monkeypatch: pytest.MonkeyPatch, module: EpisodeModel, episodes: list[Episode] = EPISODES
) -> None:
    """Compare a batch of different lengths with its single episodes, in float64."""
    batch = batch_of(module, episodes)
    with monkeypatch.context() as patch:
        in_float64(module, patch)
        check_batch(module, batch, episodes, 1e-9)


def check_batch(module: EpisodeModel, batch: Batch, episodes: list[Episode], tolerance: float) -> None:
    """Compare loss and gradient of a batch with those of its episodes."""
    plain = PlainLoss(module, episodes)
    found, expected = module(batch)[0].item(), plain.loss().item()
    assert found == pytest.approx(expected, rel=tolerance)
    check_gradients(gradients(module, loss_of(module, batch)), gradients(module, plain.loss), tolerance)


class PlainLoss:
    """The loss from facts 3.3 and 3.4, episode by episode, with mlx-lm's caches and without any padding."""

    def __init__(self, module: EpisodeModel, episodes: list[Episode]):
        self.model, self.terms, self.episodes = module.model, module._terms, episodes

    def loss(self) -> mx.array:
        terms = self.terms
        self.gates: dict[str, list[list[mx.array]]] = {"read": [], "write": []}
        weighted, weights, hinges, divergences = [], [], {"zeroed": [], "corrupted": []}, []
        for each in self.episodes:
            states = make_prompt_cache(self.model)[-1].cache
            begin = 0
            for ids, written in each.passes if each.history.ids else []:
                cache, where = make_prompt_cache(self.model), slice(begin, begin + len(ids))
                cache[-1].cache = states
                flags = np.broadcast_to(written, len(ids))
                messages = np.where(flags, each.history.message_ids[where], -1)
                spans = write_spans(self.model, messages[None], [each.history.sentence_ids[where]])
                with spans, self.writing(written), self.noting("write", np.flatnonzero(flags)):
                    self.model(mx.array([ids]), cache=cache)
                states, begin = cache[-1].cache, where.stop
            # Without whole chats, the teacher weighs nothing.
            for question, whole in zip(each.questions, each.context or each.questions, strict=True):
                with self.noting("read"):
                    kept = self.log_probabilities(question, states, question.written)
                target = mx.array(question.ids[question.answer :])[:, None]
                losses = -mx.take_along_axis(kept, target, axis=1)[:, 0]
                begin_of_value, end_of_value = question.value
                # With the token after the value.
                value = range(begin_of_value, end_of_value + 1 if end_of_value > begin_of_value else end_of_value)
                weight = [VALUE_WEIGHT if at in value else 1.0 for at in range(question.answer, len(question.ids))]
                if question.target == "frozen":
                    teacher = mx.stop_gradient(self.log_probabilities(question, None))
                    weight, losses = [1.0] * len(target), (mx.exp(teacher) * (teacher - kept)).sum(axis=-1)
                weighted.append((losses * mx.array(weight)).sum() * question.weight)
                weights.append(sum(weight))
                if question.target:
                    continue
                for name, other in (("zeroed", None), ("corrupted", corrupted(states))):
                    written = question.written if other is not None else False
                    worse = -mx.take_along_axis(self.log_probabilities(question, other, written), target, axis=1).mean()
                    gap = (terms.contrast_margin - (worse - losses.mean())) / terms.contrast_margin
                    hinges[name].append(mx.logaddexp(gap, 0.0))
                teacher = mx.stop_gradient(self.log_probabilities(whole, None))
                divergences.append((mx.exp(teacher) * (teacher - kept)).sum(axis=-1))
        means = self.mean_gates(terms.sparsity_pass)
        return (
            sum(weighted) / sum(weights)
            + terms.sparsity * mx.square(means - terms.sparsity_target).mean()
            + (terms.contrast_zeroed * mx.stack(hinges["zeroed"]).mean() if divergences else 0.0)
            + (terms.contrast_corrupted * mx.stack(hinges["corrupted"]).mean() if divergences else 0.0)
            + (terms.teacher_kl * mx.concatenate(divergences).mean() if divergences else 0.0)
        )

    def log_probabilities(
        self, question: Question, states: list[mx.array] | None, written: Written = False
    ) -> mx.array:
        """`[A, vocabulary]`, of the tokens of the answer."""
        cache: PromptCache = make_prompt_cache(self.model)
        if states is not None:
            cache[-1].cache = list(states)
        with self.writing(written):
            logits = self.model(mx.array([question.ids]), cache=cache)
        return nn.log_softmax(logits[0, question.answer - 1 : -1])

    def writing(self, written: Written) -> AbstractContextManager[None]:
        if isinstance(written, bool):
            return nullcontext() if written else read_only(self.model)
        return write_mask(self.model, mx.array([written]))

    def noting(self, name: str, places: np.ndarray | None = None) -> AbstractContextManager[None]:
        """Note what each layer's gates are, `[1, T, H, r]`, for each layer of a pass; of all tokens, or of some."""
        self.gates[name].append([])

        def note(_: int, reads: Reads, __: mx.array, noted: list[mx.array] = self.gates[name][-1]) -> None:
            noted.append(reads.gates.write if places is None else reads.gates.write[:, mx.array(places)])

        return observing(self.model, note)

    def mean_gates(self, name: str) -> mx.array:
        """The mean of each layer over the tokens of all passes."""
        layers = zip(*self.gates[name], strict=True)
        return mx.stack([mx.concatenate(passes, axis=1).mean() for passes in layers])


@pytest.mark.slow
@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("of_all", [False, True], ids=["some", "all"])
def test_a_batch_of_other_targets_equals_its_single_episodes(of_all, terms, monkeypatch):
    episodes = [
        towards(EPISODES[0], "frozen", 2.0),
        towards(as_read(EPISODES[1]), "answer", 0.5),
        towards(as_read(EPISODES[2]), "frozen"),
        *([] if of_all else [towards(half_written(EPISODES[0]), "", 3.0)]),
    ]
    check_single_episodes(monkeypatch, episode_model(terms=TERMS[terms]), episodes[1:])
    check_single_episodes(monkeypatch, episode_model(terms=TERMS[terms]), episodes[:1])


def test_the_frozen_target_costs_nothing_without_a_memory():
    module = episode_model(terms=EVERYTHING)
    batch = batch_of(module, [towards(replace(each, history=NO_SEGMENTS), "frozen") for each in EPISODES])
    loss, tokens = module(batch)
    sparsity = EVERYTHING.sparsity * EVERYTHING.sparsity_target**2
    assert loss.item() == pytest.approx(sparsity, abs=1e-6) and tokens.item() == 11


def test_filler_questions_do_not_count():
    module = episode_model(terms=READ_SPARSITY)
    # The same questions, with and without filler questions.
    one = [episode(11, (9, 3)), episode(11, (9, 3))]
    many = [one[0], Episode(one[0].history, one[0].questions * 3, one[0].context * 3)]
    losses = [module(batch_of(module, episodes))[0].item() for episodes in (one, many)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert [module(batch_of(module, episodes))[1].item() for episodes in (one, many)] == [6, 12]


@pytest.mark.parametrize(
    "episodes", [MASKED, TURNS, TARGETS, WRITTEN], ids=["some of it", "turns", "targets", "written"]
)
def test_padding_does_not_count(episodes, monkeypatch):
    # The texts of the tests are short: passes that only the shortest ones share are wanted here.
    monkeypatch.setattr(grouping, "_TOKENS_OF_A_PASS", 0)
    module = episode_model(terms=EVERYTHING)
    in_float64(module, monkeypatch)
    padded = batch_of(module, episodes)
    exact = BatchMaker(module.model.attachment.config, VALUE_WEIGHT, compiled=False).batch(episodes)
    assert len(exact.history) > len(padded.history)
    assert sum(each.ids.size for each in exact.history) < sum(each.ids.size for each in padded.history)
    expected = gradients(module, loss_of(module, padded))
    numbers = [float(each) for each in (module.watch.loss, module.watch.write_gate, module.watch.state_norm)]
    check_gradients(gradients(module, loss_of(module, exact)), expected, 1e-9)
    found = [float(each) for each in (module.watch.loss, module.watch.write_gate, module.watch.state_norm)]
    assert found == pytest.approx(numbers, rel=1e-6)


# The results of a step


def test_the_numbers_for_reports():
    module = episode_model()
    batch = batch_of(module)
    loss, tokens = module(batch)
    plain = PlainLoss(module, EPISODES)
    plain.loss()
    assert module.watch.loss.item() == loss.item()
    assert tokens.item() == 11
    assert module.watch.write_gate.item() == pytest.approx(plain.mean_gates("write").mean().item(), abs=1e-6)
    cache = make_prompt_cache(module.model)
    module.model(mx.array([EPISODES[0].history.ids]), cache=cache)
    norm = math.sqrt(sum(state.square().sum().item() for state in cache[-1].cache))
    for count in (1, 3):
        module(batch_of(module, EPISODES[:1] * count))
        assert module.watch.state_norm.item() == pytest.approx(norm, rel=1e-5)


def test_a_step_without_a_history_is_not_reported_as_a_state_of_zero():
    module, untold = episode_model(), episode(0, (9, 3))

    def watched(*episodes: Episode) -> tuple[float, float]:
        module(batch_of(module, episodes))
        return module.watch.write_gate.item(), module.watch.state_norm.item()

    assert all(map(math.isnan, watched(untold)))
    told = watched(EPISODES[0])
    assert min(told) > 0
    assert watched(untold) == told
    # A text that is written as it is read has gates, and no state after a history.
    gate, norm = watched(as_read(untold))
    assert 0 < gate != told[0] and norm == told[1]
    # Episodes without a history do not make the mean smaller.
    assert watched(EPISODES[0], untold)[1] == pytest.approx(told[1], rel=1e-5)
    # What is held out is not a step.
    module.eval()
    before = module.watch.write_gate.item()
    assert watched(episode(7, (9, 3), seed=3))[0] == before


def test_the_norm_of_a_state_does_not_count_the_row_of_a_key_shift():
    module = episode_model(replace(VARIANTS["TSW"], key_shift=True))
    cache = make_prompt_cache(module.model)
    module.model(mx.array([EPISODES[0].history.ids]), cache=cache)
    rank = VARIANTS["TSW"].rank
    assert cache[-1].cache[0].shape[2] == rank + 1
    norm = math.sqrt(sum(state[:, :, :rank].square().sum().item() for state in cache[-1].cache))
    module(batch_of(module, EPISODES[:1]))
    assert module.watch.state_norm.item() == pytest.approx(norm, rel=1e-5)


def test_losses_of_16_bit_logits_are_computed_in_float32():
    asked = batch_of(episode_model()).asked
    logits = (mx.random.normal((*asked.targets.shape, VOCABULARY)) * 5).astype(mx.bfloat16)
    found, exact = answer_losses(logits, asked), answer_losses(logits.astype(mx.float32), asked)
    assert found.dtype == mx.float32 and distance(found, exact) <= 1e-6
    other = mx.random.normal(logits.shape).astype(mx.bfloat16)
    found, exact = (divergence(other.astype(kind), logits.astype(kind), asked) for kind in (mx.bfloat16, mx.float32))
    assert found.dtype == mx.float32 and distance(found, exact) <= 1e-6


def test_answers_are_counted_in_evaluation_mode_only():
    module = episode_model()
    module(batch_of(module))
    assert module.accuracy.take() == {}
    module.eval()
    module(batch_of(module))
    assert module.accuracy.take()["questions"] == 4


def test_only_the_adapter_is_trained():
    module = episode_model()
    assert all(".delta_mem." in name for name, _ in tree_flatten(module.trainable_parameters()))


def test_a_compiled_loss_is_the_same():
    module = episode_model(VARIANTS["SSW"], EVERYTHING)
    batch = batch_of(module)

    @partial(mx.compile, inputs=[module.state], outputs=[module.state])
    def step(*fields: mx.array) -> mx.array:
        return module(Batch.of(*fields))[0]

    expected = module(batch)[0].item()
    assert step(*batch).item() == pytest.approx(expected, rel=1e-5)
    assert module.watch.loss.item() == pytest.approx(expected, rel=1e-5)
    other = batch_of(module, [episode(9, (9, 3), (5, 2), seed=2), *EPISODES[1:]])
    assert step(*other).item() == pytest.approx(module(other)[0].item(), rel=1e-5) != pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("episodes", [MASKED, TURNS, TARGETS], ids=["some of it", "turn by turn", "other targets"])
@pytest.mark.parametrize("segment", [0, 5])
def test_a_compiled_step_of_partly_written_texts(segment, episodes):
    module = episode_model(terms=EVERYTHING)
    segmented = EpisodeModel(module.model, EVERYTHING, segment).train()
    batch = batch_of(module, episodes)
    state = [segmented.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(*fields: mx.array) -> tuple[mx.array, dict]:
        of_batch = nn.value_and_grad(segmented, lambda module, *fields: module(Batch.of(*fields)))
        (loss, _), found = of_batch(segmented, *fields)
        return loss, found

    loss, found = step(*batch)
    assert loss.item() == pytest.approx(module(batch)[0].item(), rel=1e-5)
    # In float32: compiled code rounds once where single operations round twice.
    check_gradients(dict(tree_flatten(found)), gradients(module, loss_of(module, batch)), 1e-4)


@pytest.mark.parametrize(
    ("terms", "writes"),
    [("corrupted", False), ("corrupted", True), ("zeroed", False)],
)
def test_without_a_history_states_are_not_compared(terms, writes):
    untold = [as_read(replace(each, history=NO_SEGMENTS), writes) for each in EPISODES]
    plain, compared = episode_model(terms=TERMS["none"]), episode_model(terms=TERMS[terms])
    losses = [module(batch_of(module, untold))[0].item() for module in (plain, compared)]
    assert losses[0] == losses[1] > 0


def test_episodes_without_a_history(monkeypatch):
    module = episode_model()
    none = [episode(0, (6, 2)), episode(0, (5, 3), (4, 2))]
    batch = batch_of(module, none)
    assert not batch.has_history
    assert module(batch)[0].item() == pytest.approx(PlainLoss(module, none).loss().item(), rel=1e-5)
    check_single_episodes(monkeypatch, module, [*none, EPISODES[0]])


# Steps


def train(module: EpisodeModel, batch: Batch, optimizer: optim.Optimizer, steps: int) -> list[float]:
    """Take steps that are compiled as in mlx-lm's trainer; return the loss before each."""
    state = [module.state, optimizer.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(*fields: mx.array) -> mx.array:
        (loss, _), found = nn.value_and_grad(module, lambda module, *fields: module(Batch.of(*fields)))(module, *fields)
        optimizer.update(module, found)
        return loss

    losses = []
    with head_at_positions(module.model):
        for _ in range(steps):
            loss = step(*batch)
            mx.eval(state, loss)
            losses.append(loss.item())
    return losses


def adamw(steps: int) -> ClippedOptimizer:
    return clipped_optimizer("adamw", 2e-2, steps, warmup=steps // 4, weight_decay=0.0, max_norm=1.0)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "4 bits", "8 bits"])
def test_frozen_weights_do_not_change_by_a_bit(kind):
    backbone = tiny_model("qwen3", bits={"4 bits": 4, "8 bits": 8}.get(kind))
    if kind == "bfloat16":
        backbone.set_dtype(mx.bfloat16)
    before = {name: weight + 0 for name, weight in tree_flatten(backbone.parameters())}
    mx.eval(before)
    module = in_training(backbone, VARIANTS["TSW"], EVERYTHING)
    adapter = {name: weight + 0 for name, weight in tree_flatten(module.trainable_parameters())}
    mx.eval(adapter)
    losses = train(module, batch_of(module), adamw(5), 5)
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0]
    after = dict(tree_flatten(module.model.parameters()))
    assert all(mx.array_equal(after[name], weight) for name, weight in before.items())
    assert all(after[name].dtype == weight.dtype for name, weight in before.items())
    for name, weight in tree_flatten(module.trainable_parameters()):
        assert weight.dtype == mx.float32 and not mx.array_equal(weight, adapter[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3-tiny", "smollm3-tiny"])
def test_steps_are_the_same_bit_for_bit(name):
    def trained() -> dict[str, mx.array]:
        mx.random.seed(3)
        module = in_training(load(backbone(name))[0], DEFAULT_ADAPTER, EVERYTHING)
        losses = train(module, batch_of(module), adamw(2), 2)
        return dict(tree_flatten(module.trainable_parameters())) | {"losses": mx.array(losses)}

    one, other = trained(), trained()
    assert all(mx.array_equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_fifty_episodes_are_learned():
    """A random backbone learns to answer from the memory, and only from it."""
    model, tokenizer = load(backbone())
    fact = EpisodeSettings((1, 1), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), questions=1, keys=("words",))
    records = (record for index in range(50) for record in make_episode(fact, "0", index).records())
    episodes = EpisodeMaker(tokenizer, EpisodeRules()).episodes(records_of_rows("recall", records))
    assert len(episodes) == 50
    config = DeltaMemConfig(rank=16, alpha=32.0, output_init="random", online_gain=0.5, beta_bias_init=-2.5)
    attach(model, config)
    freeze_all_but_adapter(model)
    module = EpisodeModel(model, LossTerms(sparsity=0.0)).train()
    batch = BatchMaker(config).batch(episodes)
    losses = train(module, batch, adamw(80), 80)
    assert losses[-1] < 0.05 * losses[0]
    assert all(map(math.isfinite, losses))
    others = batch._replace(history=tuple(Pass(each.ids[::-1], each.lengths[::-1], None) for each in batch.history))
    assert module(others)[0].item() > 10 * module(batch)[0].item()
