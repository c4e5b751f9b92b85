import math
import sys
from pathlib import Path

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib")

from matplotlib.figure import Figure  # noqa: E402
from matplotlib.image import imread  # noqa: E402

from mlx_deltamem.inspection.trace import Trace  # noqa: E402
from mlx_deltamem.inspection.trace_page import write_trace_page  # noqa: E402
from mlx_deltamem.show.layers import layer_figure  # noqa: E402
from mlx_deltamem.show.plot import ENDINGS, PAGE, LayerCharts, check_plot  # noqa: E402
from mlx_deltamem.show.style import limits, save_figure  # noqa: E402
from tests.figures import assert_readable  # noqa: E402


@pytest.mark.slow
@pytest.mark.parametrize(
    ("charts", "layers", "one_scale"), [(1, 36, True), (3, 1, False), (3, 1, True), (13, 30, False)]
)
def test_numbers_by_layer(charts, layers, one_scale, monkeypatch):
    numbers = {f"delta_{i}_proj": dict.fromkeys(range(layers), float(i)) for i in range(charts)}
    numbers["delta_0_proj"][0] = math.nan if charts == 3 else 0.0
    figure = layer_figure(LayerCharts("A title", "a unit", numbers, one_scale=one_scale))
    shown = assert_readable(figure, monkeypatch)
    assert {"a unit", "layer", *numbers} <= set(shown)
    assert ("zero in every layer" in shown) == (charts != 3)
    assert ("1 not finite" in shown) == (charts == 3)
    tops = {axes.get_ylim()[1] for axes in figure.axes}
    assert len(tops) == (1 if one_scale else len({0: 1.0} | {i: i * 1.05 for i in range(1, charts)}))


def test_nothing_by_layer(monkeypatch):
    shown = assert_readable(layer_figure(LayerCharts("A title", "a unit", {}, "Nothing is there.")), monkeypatch)
    assert shown == ["A title", "Nothing is there."]


def test_a_long_title_is_broken(monkeypatch):
    title = "a_very_long_name_of_an_adapter " * 4 + "W" * 90
    assert_readable(layer_figure(LayerCharts(title, "a unit", {"one": {0: 1.0}})), monkeypatch)


def test_limits():
    assert limits(np.array([0.0, 10.0, math.nan, math.inf]), 0.1) == (-1.0, 11.0)
    assert limits(np.array([2.0, 2.0]), 0.5) == (1.5, 2.5)
    assert limits(np.array([math.nan]), 0.5) == (0.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "begins"), [(".png", b"\x89PNG"), (".PDF", b"%PDF"), (".svg", b"<?xml")])
def test_saving(ending, begins, tmp_path):
    path = tmp_path / f"figure{ending}"
    figure = layer_figure(LayerCharts("A title", "a unit", {"one": {0: 1.0, 1: 2.0}}))
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
        save_figure(layer_figure(LayerCharts("", "", {})), path)
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


@pytest.mark.parametrize("ending", [".png", ".pdf", ".svg", ".html"])
def test_only_an_earlier_figure_is_replaced(ending, tmp_path):
    path, endings, one = tmp_path / f"figure{ending}", (*ENDINGS, PAGE), np.ones((1, 1))
    others = (b"notes", b"\x89PNG\r\n\x1a\n a photo", b"%PDF-1.4 a paper", b"<?xml?><svg/>", b"<!doctype html><title>x")
    for content in others:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="exists already"):
            check_plot(path, endings)
        assert path.read_bytes() == content
    path.write_bytes(b"")
    check_plot(path, endings)
    if ending == PAGE:
        write_trace_page(Trace([0], ["a"], [0], one, one, None, [1], one, [], {}), "", path)
    else:
        save_figure(layer_figure(LayerCharts("", "", {})), path)
    check_plot(path, endings)


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"pip install 'mlx-deltamem\[plot\]'"):
        check_plot(tmp_path / "out.png")
