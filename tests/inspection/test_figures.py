import math

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib")

from matplotlib.figure import Figure  # noqa: E402

from mlx_deltamem.inspection.session_figure import session_figure  # noqa: E402
from mlx_deltamem.inspection.trace_figure import trace_figure  # noqa: E402
from mlx_deltamem.show.style import families_for  # noqa: E402
from tests.figures import assert_readable  # noqa: E402
from tests.reports import a_session, a_trace  # noqa: E402

WORDS = ["My", " name", " is", " Anna", "\n", " and", " I", " keep", " internationalisation", "   ", "$", "_x^2", "\t"]
AWKWARD = ["$^$", "\\", "世", "界", "ह", "🙂", "\x00", "\u200b", "é", "", "�", "مر", "a" * 40]


def texts(count: int) -> list[str]:
    return (WORDS * (count // len(WORDS) + 1))[:count]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "options"),
    [
        (1, {"layers": 1, "rank": 1}),
        (5, {"layers": 3, "corrects": False}),
        (60, {"layers": 9, "heads": 4, "rank": 16}),
        (3000, {"layers": 36, "rank": 64}),
    ],
)
def test_what_a_text_did(count, options, monkeypatch):
    figure = trace_figure(a_trace(texts(count), **options), "an adapter on a model, reading a text")
    shown = assert_readable(figure, monkeypatch)
    for label in ("norm of the\nstate ‖S‖", "keep\n(share)", "write β\n(share)", "layer", "β (mean of the rows)"):
        assert label in shown
    assert any(text.startswith("‖Δo‖ / ‖o‖") for text in shown)
    assert ("o is not\ncorrected" in shown) == (options.get("corrects") is False)
    assert sum(text.startswith("layer ") and text[6:].isdigit() for text in shown) == options["layers"]
    axis = next(text for text in shown if text.startswith("tokens"))
    assert ("named" in axis) == (count > 60)
    if count <= 60:
        assert sum(text == "My" for text in shown) == -(-count // len(WORDS))


@pytest.mark.slow
def test_the_tokens_written_most_are_named():
    trace = a_trace(texts(1000))
    trace.write[:, [77, 500, 923]] = 0.9
    figure = trace_figure(trace, "")
    axes = next(axes for axes in figure.axes if axes.get_xlabel().startswith("tokens"))
    assert {77, 500, 923} <= set(axes.get_xticks())
    assert len(axes.get_xticks()) > 25


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_tokens_of_any_script_are_drawn_or_numbered(monkeypatch):
    shown = assert_readable(trace_figure(a_trace(AWKWARD), "the name 世 of a $file$ has $ in it"), monkeypatch)
    assert "$^$" in shown
    assert not any(families_for(text.splitlines())[1] for text in shown)
    assert {"U+0000", "U+200B", "#1009", "#1010", "aaaaaaaaaaa…"} <= set(shown)
    for number, character in ((1002, "世"), (1005, "🙂")):
        assert (character in shown) != (f"#{number}" in shown)
    assert any("#: the id of one that cannot be drawn" in text for text in shown)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("turns", "options"),
    [(0, {}), (1, {}), (12, {"layers": 30, "heads": 4, "rank": 4}), (200, {"layers": 104, "rank": 2})],
)
def test_a_chat(turns, options, monkeypatch):
    shown = assert_readable(session_figure(a_session(turns, **options)), monkeypatch)
    for label in ("kept by each token\n(mean keep gate)", "moved by the turn\n(relative to ‖S‖)", "turn"):
        assert label in shown
    assert {"values (rows)", "keys (columns)"} <= set(shown)
    assert ("no turn wrote it" in shown) == (turns == 0)
    assert any("gaps" in text for text in shown) == (turns > 3)


def test_states_are_drawn_on_one_symmetric_scale():
    report = a_session(1)
    report.arrays[1][0, 2, 3] = -9.0
    report.arrays[0][0, 0, 0] = math.nan
    report.arrays[2][0, 0, 0] = math.inf
    figure = session_figure(report)
    images = [image for axes in figure.axes for image in axes.get_images()]
    assert {image.get_clim() for image in images} == {(-9.0, 9.0)}
    assert [image.get_array().count() for image in images] == [63, 64, 63]
    assert np.array_equal(images[1].get_array(), report.arrays[1][0])
    assert any("2 not finite (grey)" in axes.get_ylabel() for axes in all_axes(figure))


def test_turns_that_only_read_are_gaps():
    figure = session_figure(a_session(12))
    medians = [line.get_ydata() for axes in figure.axes for line in axes.lines]
    assert [np.flatnonzero(np.isnan(median)).tolist() for median in medians] == [[3, 10], [3, 10]]


def all_axes(figure: Figure) -> list:
    return [axes for parent in figure.axes for axes in (parent, *parent.child_axes)]


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_numbers_that_overflowed_do_not_stop_a_figure():
    trace = a_trace(texts(9))
    for numbers in (trace.norms, trace.write, trace.keep, trace.correction):
        numbers[0, 4:] = math.nan
    trace.norms[1, 6:] = math.inf
    trace_figure(trace, "").draw_without_rendering()
    for numbers in (trace.norms, trace.write, trace.keep, trace.correction):
        numbers[:] = math.nan
    trace_figure(trace, "").draw_without_rendering()
