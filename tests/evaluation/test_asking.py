"""How questions are asked: sampling, the ends of replies, measures and batches."""

from dataclasses import replace

import mlx.core as mx
import pytest

from mlx_deltamem import load
from mlx_deltamem.evaluation.asking import Asker, Job, Manner
from mlx_deltamem.evaluation.conditions import CONDITIONS
from mlx_deltamem.evaluation.decoding import _Growing, seeded_sampler
from mlx_deltamem.evaluation.prompts import Prompts
from mlx_deltamem.evaluation.task import Sampling
from tests.conftest import adapter, backbone
from tests.evaluation.runs import asker, loaded, questions, replies


def test_every_token_is_drawn_anew_from_those_that_may_be():
    logprobs = mx.log(mx.array([[0.5] + [0.5 / 999] * 999]))

    def drawn(**options):
        sampler = seeded_sampler(Sampling(temp=1.0, **options), 3)
        return [sampler(logprobs).item() for _ in range(12)]

    assert len(set(drawn())) > 3 and drawn() == drawn()
    assert set(drawn(top_k=1)) == set(drawn(top_p=0.3)) == {0}
    assert seeded_sampler(Sampling(), 3)(logprobs).item() == 0


def test_thinking_is_off():
    _, tokenizer = load(backbone(), adapter=adapter())
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
        "{% if add_generation_prompt %}{{ 'off' if enable_thinking is false else 'on' }}{% endif %}"
    )
    prompt = Prompts(tokenizer, by_token=True).prompt(questions()[0], with_history=False, writing=False)
    assert tokenizer.decode(prompt.own.ids).endswith("</>off")


def test_what_writes_means_is_asked_one_by_one():
    for name, condition, writes, most in (
        ("qwen3_ssw_msg", "full", False, 1),
        ("qwen3_ssw_msg", "state", True, 1),
        ("qwen3_ssw_msg", "state", False, 8),
        ("qwen3_ssw_msg", "base", True, 8),
        ("qwen3_tsw_qo", "full", True, 8),
    ):
        one = asker(questions(), name, Manner(write="all" if writes else "after"))
        assert one.most_at_once(CONDITIONS[condition], 8) == most


@pytest.mark.slow
def test_a_reply_that_was_stopped_does_not_go_on_beside_others():
    asked = questions(2, 1, max_tokens=30)
    first, other = replies(asked, "state")
    stop = next(first[at : at + 3] for at in range(4, len(first) - 3) if first[at : at + 3] not in other)
    one = asker(asked, manner=Manner(stop=(stop,)))
    jobs = [Job(question, 0) for question in asked]
    together, _ = one.ask(jobs, CONDITIONS["state"])
    assert together == [one.ask([job], CONDITIONS["state"])[0][0] for job in jobs]
    assert [reply.ending for reply in together] == ["stop", "length"] and together[0].tokens < together[1].tokens


def test_a_stop_text_in_the_white_space_before_a_reply_does_not_end_it():
    _, tokenizer = loaded()
    growing = _Growing(tokenizer, ("\n",))
    ids = tokenizer.encode(" \n\nRex.\nAnd more", add_special_tokens=False)
    replies = [growing.add(token, None) for token in ids]
    found = next(reply for reply in replies if reply is not None)
    assert (found.text, found.ending) == (" \n\nRex.", "stop")


def test_replies_are_no_part_of_the_corrections():
    measured = []
    for length in (2, 7):
        asked = questions(2, 2, max_tokens=length)
        _, measures = asker(asked).ask([Job(question, 0) for question in asked], CONDITIONS["state"])
        measured.append((measures.correction, measures.corrected))
    assert measured[0] == pytest.approx(measured[1], rel=1e-5)


def test_an_output_that_is_not_corrected_has_no_correction():
    asked = questions(2, 2)
    model, tokenizer = load(backbone(), adapter=adapter())
    for module in model.modules():
        if "delta_mem" in module:
            module.delta_mem.delta_o_proj = mx.zeros_like(module.delta_mem.delta_o_proj)
    one = Asker(model, tokenizer, Manner(), {each.group: each for each in asked}, {})
    _, measures = one.ask([Job(question, 0) for question in asked], CONDITIONS["state"])
    assert measures.norm > 0 and measures.corrected > 0 and measures.correction == 0.0


def test_the_token_that_ends_a_reply_is_counted():
    (question,) = questions(1, 1)
    model, tokenizer = load(backbone(), adapter=adapter())
    one = Asker(model, tokenizer, Manner(), {question.group: question}, {})
    (whole,), _ = one.ask([Job(question, 0)], CONDITIONS["none"])
    assert (whole.ending, whole.tokens) == ("length", question.max_tokens)
    ids = tokenizer.encode(whole.text, add_special_tokens=False)
    tokenizer.add_eos_token(str(ids[2]))
    (ended,), measures = one.ask([Job(question, 0)], CONDITIONS["none"])
    assert (ended.ending, ended.tokens) == ("end", ids.index(ids[2]) + 1)
    assert measures.reply_tokens == ended.tokens


def test_a_beginning_is_shared_as_far_as_it_is_the_same():
    first, second = questions(1, 2, in_prompt=True)
    asked = [first, replace(second, context=second.context.replace("Rex", "Max"))]
    one = asker(asked)
    together = [one.ask([Job(question, 0)], CONDITIONS["base"])[0] for question in asked]
    assert together == [asker(asked).ask([Job(question, 0)], CONDITIONS["base"])[0] for question in asked]
