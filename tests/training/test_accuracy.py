from dataclasses import replace

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step

from mlx_deltamem import load, make_prompt_cache, read_only
from mlx_deltamem.training import passes
from mlx_deltamem.training.accuracy import Accuracy
from mlx_deltamem.training.batch import Asked, Frozen
from mlx_deltamem.training.batches import BatchMaker
from mlx_deltamem.training.episode import Question
from mlx_deltamem.training.episodes import EpisodeMaker
from mlx_deltamem.training.logits import head_at_positions
from mlx_deltamem.training.records import Record
from mlx_deltamem.training.rules import EpisodeRules
from tests.conftest import adapter, backbone
from tests.sessions.template.test_chat_template import chat


def asked(targets: list[list[int]], lengths: list[int], values: list[list[bool]]) -> Asked:
    """Questions with the first `lengths` tokens of `targets` as answers."""
    weights = mx.arange(len(targets[0])) < mx.array(lengths)[:, None]
    ids = mx.array(targets)
    return Asked(ids, mx.ones(ids.shape, mx.bool_), ids, ids, weights.astype(mx.float32), mx.array(values))


def choosing(choices: list[list[int]]) -> mx.array:
    """Logits `[N, A, 8]` with the largest ones at these tokens."""
    return mx.random.uniform(shape=(8,)) + 2 * (mx.array(choices)[..., None] == mx.arange(8))


NO, YES = False, True


def test_answers_and_values_are_counted():
    questions = asked(
        [[1, 2, 3], [1, 2, 3], [4, 5, 0], [6, 7, 0], [1, 1, 1]],
        [3, 3, 2, 2, 0],
        [[NO, YES, YES], [NO, YES, NO], [NO, NO, NO], [YES, NO, NO], [NO, NO, NO]],
    )
    recall = Accuracy()
    # Right; right in its value only; right except for padding; wrong; a filler question.
    recall.add(choosing([[1, 2, 3], [1, 2, 0], [4, 5, 7], [0, 7, 0], [1, 1, 1]]), questions)
    assert recall.take() == {"questions": 4, "answers": 2 / 4, "values": 2 / 3}
    assert recall.take() == {}


def test_counts_of_batches_add_up():
    recall = Accuracy()
    plain = asked([[1, 2]], [2], [[NO, NO]])
    recall.add(choosing([[1, 2]]), plain)
    recall.add(choosing([[1, 3]]), plain)
    assert recall.take() == {"questions": 2, "answers": 0.5}


def test_kinds_are_counted_separately():
    recall = Accuracy(["absent", "names"])
    plain = asked([[1, 2], [1, 2], [3, 4], [5, 6]], [2] * 4, [[NO, YES], [NO, NO], [NO, NO], [NO, NO]])
    recall.add(choosing([[1, 2], [1, 0], [3, 4], [5, 6]]), plain._replace(kinds=mx.array([2, 2, 1, 0])))
    assert recall.take() == {
        "questions": 4,
        "answers": 0.75,
        "values": 1.0,
        "questions:absent": 1,
        "answers:absent": 1.0,
        "questions:names": 2,
        "answers:names": 0.5,
        "values:names": 1.0,
    }


def test_tokens_are_counted_if_the_target_is_the_frozen_model():
    recall = Accuracy(["talk"])
    plain = asked([[1, 2, 3], [1, 2, 3]], [3, 3], [[NO] * 3] * 2)._replace(kinds=mx.array([1, 0]))
    weights = mx.array([[2.0, 2.0, 0.0], [1.0, 1.0, 1.0]])
    frozen = Frozen(mx.array([0, 1]), weights)
    recall.add_frozen(choosing([[1, 0, 3], [1, 2, 4]]), choosing([[1, 2, 3], [1, 2, 4]]), plain, frozen)
    assert recall.take() == {"alike": 4 / 5, "alike:talk": 1 / 2}


def test_an_answer_is_right_if_greedy_decoding_gives_it():
    model, tokenizer = load(backbone(), adapter=adapter())
    record = Record("here", tuple(chat("My word is jade!", "Thank you.", "What is it?", "jade")))
    [episode] = EpisodeMaker(tokenizer, EpisodeRules()).episodes([record])
    [question] = episode.questions
    prompt = question.ids[: question.answer]
    cache = make_prompt_cache(model)
    model(mx.array([episode.history.ids]), cache=cache)
    cache = [*make_prompt_cache(model)[:-1], cache[-1]]
    with read_only(model):
        reply = [token for token, _ in generate_step(mx.array(prompt), model, prompt_cache=cache, max_tokens=8)]
    wrong = [*reply[:-1], (reply[-1] + 1) % 288]
    questions = tuple(Question(prompt + answer, len(prompt), (0, 0)) for answer in (reply, wrong, reply[:3]))
    batch = BatchMaker(model.attachment.config).batch([replace(episode, questions=questions)])
    with head_at_positions(model):
        states = passes.of_rows(passes.write(model, batch, lambda *_: None), batch.rows)
        recall = Accuracy()
        recall.add(passes.read(model, states, batch.asked), batch.asked)
    assert recall.take() == {"questions": 3, "answers": 2 / 3}


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_logits_of_any_precision(dtype):
    recall = Accuracy()
    recall.add(choosing([[1, 2]]).astype(dtype), asked([[1, 2]], [2], [[NO, YES]]))
    assert recall.take() == {"questions": 1, "answers": 1.0, "values": 1.0}
