import io
import math
import re

import mlx.core as mx
import pytest
from rich.console import Console

from mlx_deltamem.inspection.heat_map import memory_view
from mlx_deltamem.sessions.turns.drift import Drift


def console(width: int = 100, colours: str | None = "truecolor", **options: object) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system=colours, record=True, **options)


def view(states: dict[int, mx.array], drift: Drift | None = None, styles: bool = False, **options: object) -> str:
    """The view of some states as text; `styles` keeps the escape sequences of the colours."""
    shown = console(**options)
    shown.print(memory_view(states, drift, shown))
    return "\n".join(line.rstrip() for line in shown.export_text(styles=styles).splitlines())


def picture(heads: int, rank: int, **options: object) -> list[str]:
    """The lines of the heat map of a layer of ones."""
    text = view({0: mx.ones((1, heads, rank, rank))}, **options)
    # The meaning of the numbers is below.
    lines = text.split("layer 0\n")[1].partition("\nscale: ")[0].splitlines()
    return [line.split("  scale")[0].split("  norm")[0] for line in lines]


def one_number(row: int, column: int, value: float, rank: int = 8) -> mx.array:
    state = mx.zeros((1, 1, rank, rank))
    state[0, 0, row, column] = value
    return state


@pytest.mark.parametrize(("rank", "across", "down"), [(1, 1, 1), (3, 3, 2), (8, 8, 4), (16, 16, 8), (64, 16, 8)])
def test_shape(rank, across, down):
    assert [line for line in picture(1, rank) if line.strip()] == ["▀" * across] * down


@pytest.mark.parametrize(("rank", "down"), [(1, 1), (3, 3), (16, 16), (40, 14), (64, 16)])
def test_shape_without_colours(rank, down):
    assert [line for line in picture(1, rank, colours=None) if line.strip()] == ["█" * down] * down


def test_heads_are_side_by_side():
    assert picture(4, 8)[:4] == [" ".join(["▀" * 8] * 4)] * 4


def test_heads_that_do_not_fit_are_below():
    row = " ".join(["▀" * 16] * 2)
    lines = picture(4, 16, width=60)
    assert lines[:8] == lines[9:17] == [row] * 8
    assert lines[8].strip() == ""
    assert picture(3, 16, width=60)[9:17] == ["▀" * 16] * 8


@pytest.mark.slow
@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize(("heads", "rank"), [(1, 8), (4, 8), (4, 16), (4, 64)])
@pytest.mark.parametrize("colours", ["truecolor", None])
def test_nothing_is_cut_off(width, heads, rank, colours):
    states = {layer: mx.random.normal((1, heads, rank, rank)) for layer in range(36)}
    drift = Drift(dict.fromkeys(states, 0.5), dict.fromkeys(states, 1.25))
    text = view(states, drift, width=width, colours=colours)
    assert "…" not in text
    for note in (r"layer \d", r"scale +[\d.]", r"norm +[\d.]", "kept  +50%", "moved  +125%"):
        assert len(re.findall(note, text)) == 36


def test_many_layers_share_the_lines_of_a_wide_terminal():
    states = {layer: mx.ones((1, 1, 8, 8)) for layer in range(36)}
    assert len(view(states, width=200).splitlines()) < len(view(states, width=60).splitlines()) / 3


def test_the_sign_and_the_place_of_a_number_are_visible():
    for value, sign in ((0.25, "█"), (-0.25, "#")):
        lines = view({0: one_number(2, 5, value)}, colours=None).split("layer 0\n")[1].splitlines()
        assert [line[:8].rstrip() for line in lines[:4]] == ["", "", " " * 5 + sign, ""]
    half = one_number(0, 0, 1.0)
    half[0, 0, 0, 1] = -0.5
    assert view({0: half}, colours=None).split("layer 0\n")[1].startswith("█-")


def test_colours_tell_the_sign():
    grey, orange, blue = "64;64;64", "250;145;35", "60;140;240"
    tiles = [view({0: one_number(1, 0, v)}, styles=True).split("layer 0")[1] for v in (0.25, -0.25)]
    # Row 1 is the lower half of the first line: its background.
    assert f"\x1b[38;2;{grey};48;2;{orange}m▀" in tiles[0]
    assert f"\x1b[38;2;{grey};48;2;{blue}m▀" in tiles[1]
    assert blue not in tiles[0]
    assert orange not in tiles[1]


def test_each_layer_has_a_scale_of_its_own():
    text = view({0: one_number(0, 0, -0.25), 7: one_number(0, 0, 12.0)}, colours=None)
    tiles = text.split("layer 7\n")[1].splitlines()
    assert "scale    0.25" in tiles[0]
    assert "scale      12" in tiles[0]
    assert tiles[0].startswith("#")
    assert tiles[0].count("█") == 1


def test_a_wide_state_shows_the_largest_number_of_each_block():
    text = view({0: one_number(63, 0, -3.0, rank=64) + 0.001}, colours=None).split("layer 0\n")[1].splitlines()
    assert "scale       3" in text[0]
    assert [line[:16].rstrip() for line in text[:16]] == [""] * 15 + ["#"]


def test_an_empty_memory():
    for colours in ("truecolor", None):
        text = view({0: mx.zeros((1, 4, 8, 8)), 1: mx.zeros((1, 4, 8, 8))}, colours=colours)
        assert "the memory is empty" in text
        assert text.count("scale       0") == 2
    assert "the memory is empty" not in view({0: one_number(0, 0, 1e-6)})


def test_numbers_that_overflowed_are_told():
    text = view({0: one_number(0, 0, float("nan")), 1: one_number(0, 0, float("inf"))})
    assert "norm      nan" in text
    assert "norm      inf" in text


def test_few_colours_or_none_are_signs():
    state = {0: one_number(0, 0, 1.0)}
    for options in ({"colours": None}, {"colours": "standard"}, {"no_color": True}):
        text = view(state, **options)
        assert "▀" not in text
        assert "-scale #=-. ░▒▓█ +scale" in text
    for colours in ("256", "truecolor"):
        assert "▀" in view(state, colours=colours)


def test_what_the_last_turn_did():
    states = {3: one_number(0, 0, 1.0), 5: one_number(0, 0, 1.0)}
    drift = Drift({3: 0.5, 5: 0.75}, {3: 0.25, 5: 1.25})
    text = view(states, drift)
    assert "last turn: each token kept 62% of the memory (half is left after 1.47 tokens)" in text
    assert "in all it moved by 75% of its norm" in " ".join(text.split())
    assert "moved     25%" in text
    assert "moved    125%" in text
    still = view(states, Drift({3: 1.0, 5: 1.0}, {3: 0.0, 5: 0.0}))
    assert "kept 100% of the memory (nothing was forgotten)" in still
    broken = view({0: one_number(0, 0, math.nan)}, Drift({0: math.nan}, {0: math.nan}))
    assert "kept nan% of the memory (what is left of it is not known)" in broken


def test_without_a_turn_nothing_is_said_of_it():
    text = view({0: one_number(0, 0, 1.0)}, None)
    assert "last turn" not in text
    assert "kept" not in text
    assert "moved" not in text
