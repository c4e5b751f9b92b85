import re
import sys
from pathlib import Path

import pytest

from mlx_deltamem import load_adapter, save_adapter
from mlx_deltamem.adapters.card.card import make_card
from mlx_deltamem.adapters.card.folder import write_card
from mlx_deltamem.core.adapter import CARD_FILE, RESULTS_FILE
from mlx_deltamem.training.run_options import parse
from mlx_deltamem.training.settings import Settings
from tests.conftest import REPO, adapter
from tools.adapters import main

INDEX = "# Adapters\n\n<!-- index -->\nThere is none yet.\n<!-- /index -->\n"


@pytest.mark.parametrize("path", sorted((REPO / "adapters").glob("*/train_config*.yaml")), ids=lambda path: path.name)
def test_the_options_of_a_run_can_be_given_to_another(path):
    assert Settings.from_flat(parse(path.read_bytes(), path)).model


@pytest.fixture
def check(monkeypatch, capsys):
    """Runs the check: its exit code and what it prints."""

    def run(path: Path, *options: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["tools.adapters", "--path", str(path), *options])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        return code, capsys.readouterr().out

    return run


@pytest.fixture
def adapters(tmp_path, check):
    """A folder with one good adapter and an index that lists it."""
    folder = tmp_path / "memory"
    read = load_adapter(adapter())
    save_adapter(read, folder)
    write_card(folder, make_card(folder, read, base_model="Qwen/Qwen3-0.6B", licence="mit"))
    (tmp_path / "README.md").write_text(INDEX)
    check(tmp_path, "--write")
    return tmp_path


def test_those_of_the_project_are_good(check):
    assert check(REPO / "adapters")[0] == 0


def test_a_good_adapter_is_listed(adapters, check):
    row = r"\| \[memory\]\(memory\) \| Qwen/Qwen3-0.6B \| 10,776 in 4\d\.\d kB \| 768 bytes \|\n"
    assert re.search(row, (adapters / "README.md").read_text())
    assert check(adapters) == (0, "memory: good\nadapters: 1, problems: 0\n")


def test_what_is_wrong_is_named(adapters, check):
    (adapters / "memory" / RESULTS_FILE).write_text('{"results": []}')
    code, printed = check(adapters)
    assert code == 1
    assert "memory: its README.md does not match its files" in printed
    (adapters / "memory" / CARD_FILE).write_text("---\na: [\n---\n")
    (adapters / "other").mkdir()
    code, printed = check(adapters, "--write")
    assert code == 1
    assert "is not a δ-mem adapter" in printed
    assert "README.md is damaged" in printed
    assert "README.md: its index" not in printed
    assert "problems: 2" in printed


def test_an_index_that_is_out_of_date_is_named(adapters, check):
    (adapters / "README.md").write_text(INDEX)
    code, printed = check(adapters)
    assert code == 1
    assert "its index does not match the folders" in printed
