"""The notebook among the guides: it is what the tool writes, it was run, and its cells run."""

import contextlib
import io
import json
import re

import pytest

from mlx_deltamem.demo import model as demo_model
from tests.conftest import adapter, backbone
from tools.notebook import CELLS, CODE, NOTEBOOK, notebook


def written() -> dict:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def source(cell: dict) -> str:
    # The format of Jupyter allows a text and a list of its lines.
    return "".join(cell["source"])


def test_the_notebook_is_what_the_tool_writes():
    """Else: make notebook."""
    found, expected = written(), notebook()
    assert [(cell["cell_type"], source(cell)) for cell in found["cells"]] == list(CELLS)
    for name in ("metadata", "nbformat", "nbformat_minor"):
        assert found[name] == expected[name]
    assert [cell["id"] for cell in found["cells"]] == [cell["id"] for cell in expected["cells"]]


def test_the_notebook_was_run():
    cells = [cell for cell in written()["cells"] if cell["cell_type"] == CODE]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "execute_result"}
    assert all(output.get("name", "stdout") == "stdout" for output in outputs)
    shown = json.dumps(outputs)
    assert "with the memory:" in shown and shown.count("data:image/png;base64,") == 1
    # Nothing of the machine it was run on.
    assert not re.search(r"/(root|home|work|tmp|Users)/", shown)
    assert len(NOTEBOOK.read_bytes()) < 200_000


@pytest.mark.slow
def test_the_cells_run(monkeypatch):
    """In order, as Python: the last value of a cell, which a notebook shows, is an expression."""
    monkeypatch.setattr(demo_model, "find_model", lambda say: backbone())
    monkeypatch.setattr(demo_model, "ADAPTER", adapter())
    space: dict = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for kind, text in CELLS:
            if kind == CODE:
                exec(compile(text, NOTEBOOK.name, "exec"), space)
    assert len(space["chat"].turns) == 1 and printed.getvalue().count("moved") == 2
    assert space["chat"]._repr_html_().count("<img") == 1
