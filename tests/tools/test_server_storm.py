"""The check of the load on the server finds what it must find."""

import re

import pytest

from mlx_deltamem.sessions.text.segments import NO_SEGMENTS
from mlx_deltamem.sessions.turns.turn import Turn

pytest.importorskip("httpx2")

from tools.measure.storm_client import SHARED, Ledger

SPECIAL = re.compile(re.escape("<|end|>"))


def turn(said: str, reply: str) -> Turn:
    return Turn(({"role": "user", "content": said},), NO_SEGMENTS, reply=reply)


@pytest.mark.parametrize(
    ("turns", "fault"),
    [
        ([("a", "1"), ("b", "2")], ""),
        # White space and special tokens are not part of a turn's reply.
        ([("a", " 1\n"), ("b", "2")], ""),
        # A client has left: there is no turn, or one that begins with what it has received.
        ([("a", "1"), ("left", "par"), ("b", "2")], ""),
        ([("a", "1"), ("left", "partly"), ("b", "2")], ""),
        ([("a", "1"), ("left", "p"), ("b", "2")], "was received, and the turn has 'p'"),
        ([("a", "1")], "1 turns are there, 2 are known"),
        ([("a", "1"), ("b", "3")], "the first fault is ('b', '3'), not ('b', '2')"),
        ([("b", "2"), ("a", "1")], "the first fault is ('b', '2'), not ('a', '1')"),
        ([("a", "1"), ("b", "2"), ("b", "2")], "3 turns are there"),
    ],
)
def test_faults_of_a_memory(turns, fault):
    ledger = Ledger("m", [("a", "1"), ("b", "2<|end|>")], {"left": "par<|end|>"})
    found = ledger.fault([turn(*each) for each in turns], SPECIAL)
    assert fault in found and bool(fault) == bool(found)


def test_a_shared_memory_has_any_order():
    ledger = Ledger(SHARED, [("a", "1"), ("b", "2")])
    assert ledger.fault([turn("b", "2"), turn("a", "1")], SPECIAL) == ""
    assert ledger.fault([turn("b", "2"), turn("b", "2")], SPECIAL)
