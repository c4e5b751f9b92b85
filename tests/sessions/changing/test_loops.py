"""Tool loops: which turns are one, and what they did to the memory together."""

import pytest

from mlx_deltamem.sessions.changing.loops import later_turns, loop_kept, loop_messages, tool_loops
from mlx_deltamem.sessions.text.segments import Segments
from mlx_deltamem.sessions.turns.drift import Drift
from mlx_deltamem.sessions.turns.turn import Turn


def turn(role: str, conversation: str = "", kept: float | None = None, tokens: int = 1, **fields: object) -> Turn:
    opening = Segments([1] * tokens, [0] * tokens, [0] * tokens)
    drift = None if kept is None else Drift({2: kept}, {2: 0.5})
    return Turn(({"role": role, "content": "x"},), opening, conversation=conversation, drift=drift, **fields)


@pytest.mark.parametrize(
    ("turns", "groups"),
    [
        ([], []),
        ([turn("user"), turn("user")], [(0,), (1,)]),
        ([turn("user"), turn("tool"), turn("tool"), turn("user")], [(0, 1, 2), (3,)]),
        # Results without a call before them are a turn.
        ([turn("tool"), turn("tool")], [(0, 1)]),
        # A turn of another conversation is between the two.
        ([turn("user", "a"), turn("user", "b"), turn("tool", "a")], [(1,), (0, 2)]),
        ([turn("user", "a"), turn("tool", "b")], [(0,), (1,)]),
        # A remembered text is part of no loop, whatever its messages are.
        ([turn("user"), turn("tool", remembered=True), turn("tool")], [(1,), (0, 2)]),
        ([turn("user", remembered=True), turn("tool")], [(0,), (1,)]),
    ],
)
def test_turns_of_one_loop(turns, groups):
    assert tool_loops(turns) == groups


def test_the_messages_of_a_loop():
    call = {"type": "function", "function": {"name": "weather", "arguments": "{}"}}
    asked, answered = turn("user", tool_calls=(call,)), turn("tool", reply="Warm.")
    messages = loop_messages([asked, answered])
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant"]
    assert messages[1]["tool_calls"] == [call] and "tool_calls" not in messages[3]
    assert loop_messages([turn("user", remembered=True)]) == ({"role": "user", "content": "x"},)


def test_the_keep_gates_of_a_loop_are_weighted_by_tokens():
    assert loop_kept([turn("user", kept=0.5, tokens=3), turn("tool", kept=0.9)]) == {2: pytest.approx(0.6)}
    assert loop_kept([turn("user", kept=0.5), turn("tool")]) == {}
    assert loop_kept([turn("user", kept=1.0, write="none"), turn("tool", kept=1.0, write="none")]) == {2: 1.0}


def test_turns_that_run_again():
    turns = [turn("user", name) for name in "abcd"]
    assert later_turns(turns, [1]) == turns[2:]
    assert later_turns(turns, [2, 0]) == [turns[1], turns[3]]
