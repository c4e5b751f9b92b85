"""The numbers of a reply, as `ChatSession.send` and `regenerate` take them."""

import math

import pytest

from mlx_deltamem.sessions.replies.reply import ReplySettings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        *(({"max_tokens": value}, "max_tokens is ") for value in (-7, 0, -2, 2.5, "x", None, True, math.nan, 10**20)),
        *(({"prefill_step_size": value}, "prefill_step_size is ") for value in (-1, 0, 2.5, "x", None, 10**20)),
        *(({"given": value}, "given is ") for value in (-1, 2.5, "x", None)),
        *(({"options": {"kv_bits": value}}, "kv_bits is ") for value in (-8, 0, 1, 7, 16, 4.0, "4", True, 10**20)),
        *(({"options": {"kv_group_size": value}}, "kv_group_size is ") for value in (0, -64, 16, 48, 64.0)),
        *(({"options": {"quantized_kv_start": value}}, "quantized_kv_start is ") for value in (-1, 1.5, 10**20)),
    ],
)
def test_numbers_that_are_refused(given, message):
    with pytest.raises(ValueError, match=f"^{message}.*; expected "):
        ReplySettings(**{"max_tokens": 1} | given)


def test_numbers_that_are_allowed():
    options = {"kv_bits": 3, "kv_group_size": 32, "quantized_kv_start": 0}
    for length in (1, -1, 2**63 - 1):
        assert ReplySettings(length, prefill_step_size=2**63 - 1, options=options).max_tokens == length
    assert ReplySettings(1, options={"kv_bits": None}).options == {"kv_bits": None}
