"""A long text that is interrupted halfway and goes on in a loaded chat."""

from mlx_deltamem import load
from tests.conftest import adapter, backbone
from tools.measure.long_memory import beginning, read_in_two


def test_each_part_of_the_text_is_measured_once():
    model, tokenizer = load(backbone(), adapter())
    told = []
    text = beginning(tokenizer, "The owl sleeps in the barn until the evening. " * 1000, 9000)
    parts = read_in_two(model, tokenizer, text, 3, told.append)
    assert parts == told
    tokens = [part.tokens for part in parts]
    assert tokens == sorted(set(tokens)) and len(parts) == 3
    assert all(part.speed > 0 and part.resident > 0 for part in parts)
