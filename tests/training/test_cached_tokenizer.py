"""The tokenizer with a cache: the same results, with fewer calls."""

from mlx_deltamem.sessions.template.chat_template import ChatTemplate
from mlx_deltamem.training import cached_tokenizer
from mlx_deltamem.training.cached_tokenizer import CachedTokenizer
from tests.sessions.template.test_chat_template import CHATML, chat, golden_tokenizer

TALK = chat("I am Ann.", "Hello.", "Who am I?", "You are Ann.", system="Be brief.")


class Counting:
    """The golden tokenizer, with counts of its calls."""

    def __init__(self):
        self.rendered = self.encoded = 0

    def __getattr__(self, name: str) -> object:
        return getattr(golden_tokenizer(), name)

    def apply_chat_template(self, *args: object, **options: object) -> str:
        self.rendered += 1
        return golden_tokenizer().apply_chat_template(*args, **options)

    def encode(self, *args: object, **options: object) -> list[int]:
        self.encoded += 1
        return golden_tokenizer().encode(*args, **options)


def test_a_text_that_comes_again_is_not_tokenised_again(monkeypatch):
    counting = Counting()
    template, plain = ChatTemplate(CachedTokenizer(counting)), ChatTemplate(golden_tokenizer())
    for prompt in (False, True):
        assert template.whole(TALK, prompt) == plain.whole(TALK, prompt)
        assert template.ids(TALK, prompt) == plain.whole(TALK, prompt).ids
    done = counting.rendered, counting.encoded
    template.whole(TALK).ids.append(7)
    assert template.whole(TALK) == plain.whole(TALK)
    assert (counting.rendered, counting.encoded) == done
    monkeypatch.setattr(cached_tokenizer, "_CACHED", 2)
    assert template.whole(TALK[:3]) == plain.whole(TALK[:3])
    assert template.whole(TALK) == plain.whole(TALK)
    assert counting.rendered > done[0]


def test_options_are_part_of_the_key():
    tokenizer, messages = CachedTokenizer(golden_tokenizer()), TALK[:2]
    texts = [
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        for prompt in (False, True)
    ]
    assert texts[0] != texts[1] and texts[1].startswith(texts[0])
    templates = ["{{ 1 }}" + CHATML, "{{ 2 }}" + CHATML]
    found = [ChatTemplate(tokenizer, chat_template=each).ids(messages) for each in templates * 2]
    assert found[0] == found[2] != found[1] == found[3]
    # The text of a template that was parsed, and not all its parts, is in the key.
    assert max(len(str(key)) for key in tokenizer._results) < 2000
    assert tokenizer.encode("ab", add_special_tokens=False) == golden_tokenizer().encode("ab", add_special_tokens=False)
