import math
import sys
from pathlib import Path

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib")

from matplotlib.figure import Figure  # noqa: E402
from matplotlib.image import imread  # noqa: E402

from mlx_deltamem.inspection.session_figure import session_figure  # noqa: E402
from mlx_deltamem.inspection.trace_figure import trace_figure  # noqa: E402
from mlx_deltamem.show.fonts import families_for  # noqa: E402
from mlx_deltamem.show.layers import layer_charts  # noqa: E402
from mlx_deltamem.show.plot import check_plot  # noqa: E402
from mlx_deltamem.show.style import limits, save_figure  # noqa: E402
from tests.figures import assert_readable  # noqa: E402
from tests.reports import a_session, a_trace  # noqa: E402

WORDS = ["My", " name", " is", " Anna", "\n", " and", " I", " keep", " internationalisation", "   ", "$", "_x^2", "\t"]
AWKWARD = ["$^$", "\\", "世", "界", "ह", "🙂", "\x00", "\u200b", "é", "", "�", "مر", "a" * 40]


def texts(count: int) -> list[str]:
    return (WORDS * (count // len(WORDS) + 1))[:count]


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


def test_the_tokens_written_most_are_named():
    trace = a_trace(texts(1000))
    trace.write[:, [77, 500, 923]] = 0.9
    figure = trace_figure(trace, "")
    axes = next(axes for axes in figure.axes if axes.get_xlabel().startswith("tokens"))
    assert {77, 500, 923} <= set(axes.get_xticks())
    assert len(axes.get_xticks()) > 25


@pytest.mark.filterwarnings("error")
def test_tokens_of_any_script_are_drawn_or_numbered(monkeypatch):
    shown = assert_readable(trace_figure(a_trace(AWKWARD), "the name 世 of a $file$ has $ in it"), monkeypatch)
    assert "$^$" in shown
    assert not any(families_for(text.splitlines())[1] for text in shown)
    assert {"U+0000", "U+200B", "#1009", "#1010", "aaaaaaaaaaa…"} <= set(shown)
    for number, character in ((1002, "世"), (1005, "🙂")):
        assert (character in shown) != (f"#{number}" in shown)
    assert any("#: the id of one that cannot be drawn" in text for text in shown)


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
    assert any("2 are no numbers (grey)" in axes.get_ylabel() for axes in all_axes(figure))


def test_turns_that_only_read_are_gaps():
    figure = session_figure(a_session(12))
    medians = [line.get_ydata() for axes in figure.axes for line in axes.lines]
    assert [np.flatnonzero(np.isnan(median)).tolist() for median in medians] == [[3, 10], [3, 10]]


def all_axes(figure: Figure) -> list:
    return [axes for parent in figure.axes for axes in (parent, *parent.child_axes)]


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


@pytest.mark.parametrize(
    ("charts", "layers", "one_scale"), [(1, 36, True), (3, 1, False), (3, 1, True), (13, 30, False)]
)
def test_numbers_by_layer(charts, layers, one_scale, monkeypatch):
    numbers = {f"delta_{i}_proj": dict.fromkeys(range(layers), float(i)) for i in range(charts)}
    numbers["delta_0_proj"][0] = math.nan if charts == 3 else 0.0
    figure = layer_charts("A title", "a unit", numbers, one_scale=one_scale)
    shown = assert_readable(figure, monkeypatch)
    assert {"a unit", "layer", *numbers} <= set(shown)
    assert ("zero in every layer" in shown) == (charts != 3)
    assert ("1 are no numbers" in shown) == (charts == 3)
    tops = {axes.get_ylim()[1] for axes in figure.axes}
    assert len(tops) == (1 if one_scale else len({0: 1.0} | {i: i * 1.05 for i in range(1, charts)}))


def test_nothing_by_layer(monkeypatch):
    shown = assert_readable(layer_charts("A title", "a unit", {}, "Nothing is there."), monkeypatch)
    assert shown == ["A title", "Nothing is there."]


def test_a_long_title_is_broken(monkeypatch):
    title = "a_very_long_name_of_an_adapter " * 4 + "W" * 90
    assert_readable(layer_charts(title, "a unit", {"one": {0: 1.0}}), monkeypatch)


def test_limits():
    assert limits(np.array([0.0, 10.0, math.nan, math.inf]), 0.1) == (-1.0, 11.0)
    assert limits(np.array([2.0, 2.0]), 0.5) == (1.5, 2.5)
    assert limits(np.array([math.nan]), 0.5) == (0.0, 1.0)


@pytest.mark.parametrize(("ending", "begins"), [(".png", b"\x89PNG"), (".PDF", b"%PDF"), (".svg", b"<?xml")])
def test_saving(ending, begins, tmp_path):
    path = tmp_path / f"figure{ending}"
    figure = layer_charts("A title", "a unit", {"one": {0: 1.0, 1: 2.0}})
    save_figure(figure, path)
    content = path.read_bytes()
    assert content.startswith(begins)
    save_figure(figure, path)
    assert path.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    if ending == ".png":
        pixels = imread(path)
        assert pixels.shape[1] >= 150 * figure.get_figwidth()
        assert pixels[..., :3].std() > 0.05


def test_a_figure_that_cannot_be_saved_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "figure.png"
    path.write_text("old")

    def fail(_: Figure, file: Path, **__: object) -> None:
        file.write_text("half a figure")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        save_figure(layer_charts("", "", {}), path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("out.jpg", ValueError, r"out.jpg does not end in .png, .pdf, .svg"),
        ("out", ValueError, "does not end in"),
        ("folder.png", ValueError, "is a folder"),
        ("nowhere/out.png", FileNotFoundError, "there is no folder"),
    ],
)
def test_where_no_figure_can_go(name, error, message, tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(error, match=message):
        check_plot(tmp_path / name)


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"pip install 'mlx-deltamem\[plot\]'"):
        check_plot(tmp_path / "out.png")
