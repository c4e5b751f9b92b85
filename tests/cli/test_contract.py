"""The contract of all commands: a wrong value or place ends with exit code 2 and one line, and leaves nothing behind.

The numbers and choices of each command are found in its parser, so that a new option is tried too.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from mlx_deltamem import __version__
from mlx_deltamem.cli import main as lister
from mlx_deltamem.cli.main import COMMANDS
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.data import MAKERS
from mlx_deltamem.options.mlx_lm_habits import OPTIONS, TRAINING
from mlx_deltamem.options.rule import Rule, shown
from tests.conftest import adapter, backbone

MODEL = ("--model", backbone(), "--adapter", adapter())
# By command, arguments with which it would begin its work in the folder of `folder` below.
WORKING: dict[str, tuple[str, ...]] = {
    "train": ("--model", backbone(), "--data", "data", "--adapter-path", "run"),
    "evaluate": (*MODEL, "--tasks", "recall", "--conditions", "none", "--output", "run"),
    "benchmark": ("--shape", "tiny"),
    "grow": (adapter(), "grown", "--rank", "16"),
    "generate": (*MODEL, "--prompt", "hi"),
    "chat": (*MODEL, "--no-save"),
    "demo": (),
    "server": (*MODEL, "--memories", "memories"),
    "inspect": (adapter(),),
    "convert": ("--torch-path", adapter(), "--mlx-path", "converted"),
    "upload": ("--path", adapter(), "--upload-repo", "anna/names", "--dry-run"),
    "data recall": ("made",),
    "data speech": ("made",),
    "data records": ("empty", "made.jsonl", "--model", backbone()),
    "data chat-logs": ("empty", "made.jsonl"),
    "data qasper": ("empty", "made.jsonl"),
}
NO_NUMBERS = ("", " ", "x", "nan", "inf", "-inf", "1e400", "9" * 5000, "0x10", "1,5", "\x1b[2J", "\ud800")
Run = Callable[..., tuple[int, str, str]]


def module(command: str) -> object:
    return importlib.import_module(f"mlx_deltamem.{command.replace('-', '_').replace(' ', '.')}")


def parser_of(command: str) -> argparse.ArgumentParser:
    return module(command).setup_arg_parser()


def argparse_help(command: str, option: argparse.Action) -> str:
    """The help text of one option, as it is printed."""
    parser = parser_of(command)
    return " ".join(parser._get_formatter()._expand_help(option).split())


def options(command: str) -> Iterator[argparse.Action]:
    return (
        each for each in parser_of(command)._actions if each.option_strings and each.dest not in ("help", "version")
    )


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "nul.txt").write_bytes(b"\x00\xff\xfe")
    return tmp_path


@pytest.fixture
def run(folder, monkeypatch, capsys) -> Run:
    """A function that runs a command in this process; it checks that nothing is left behind if the command fails."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def run(command: str, *arguments: str) -> tuple[int, str, str]:
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
        places = set(folder.rglob("*"))
        monkeypatch.setattr(sys, "argv", [f"mlx_deltamem.{command}", *arguments])
        code = 0
        capsys.readouterr()
        try:
            (lister if command == "list" else module(command)).main()
        except SystemExit as ended:
            code = ended.code
        if code:
            assert set(folder.rglob("*")) == places
            assert {path: path.stat().st_mtime_ns for path in before} == before
        return code, *capsys.readouterr()

    return run


def assert_one_line(ended: tuple[int, str, str], message: str = "") -> None:
    code, out, err = ended
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")
    assert err[:-1].isprintable() and len(err) < 1200
    assert message in err


def assert_usage_error(command: str, ended: tuple[int, str, str], message: str = "") -> None:
    """Check for an error of the command line: one line as above, which says where the options are listed."""
    assert_one_line(ended, message)
    assert ended[2].endswith(f" (`mlx_deltamem.{command} --help` lists the options)\n")


def beyond(rule: Rule) -> Iterator[str]:
    """Numbers out of a rule's range."""
    if rule.choices:
        yield from ("-8", "0", "7")
        return
    low, high = rule._limits()
    step = 1 if rule.kind is int else max(abs(low), 1e-9) * 0.01
    allowed = () if rule.other is None else (rule.other[0],)
    yield from (str(value) for value in (low - step, high + max(1, high * 0.01)) if value not in allowed)
    if rule.above is not None:
        yield str(rule.above)
    if rule.kind is int:
        yield from ("1.5", "2.0", "1" + "0" * 20)


def test_every_command_is_tried():
    assert {name for name in WORKING if not name.startswith("data ")} == COMMANDS.keys() - {"data"}
    assert {name for name in WORKING if name.startswith("data ")} == {f"data {name}" for name in MAKERS}


@pytest.mark.parametrize("command", WORKING)
def test_every_parser_reads_numbers_by_rules(command):
    parser = parser_of(command)
    assert isinstance(parser, Parser)
    assert not [each.dest for each in parser._actions if each.type in (int, float)]


@pytest.mark.slow
@pytest.mark.parametrize("command", WORKING)
def test_wrong_numbers(command, run):
    for option in options(command):
        if isinstance(rule := option.type, Rule) and rule.kind in (int, float):
            for name in option.option_strings:
                for value in (*beyond(rule), *NO_NUMBERS):
                    count = option.nargs if isinstance(option.nargs, int) else 1
                    if value == "-inf" and (count > 1 or len(name) == 2):
                        # To argparse it looks like an option.
                        continue
                    given = [f"{name}={value}"] if count == 1 and len(name) > 2 else [name, *[value] * count]
                    ended = run(command, *WORKING[command], *given)
                    assert_usage_error(command, ended, f"{'/'.join(option.option_strings)} is ")
                    assert "; expected " in ended[2], given


@pytest.mark.parametrize("command", WORKING)
def test_the_help_has_the_range_of_every_number(command):
    text = " ".join(parser_of(command).format_help().split())
    for option in options(command):
        if isinstance(rule := option.type, Rule) and rule.kind in (int, float) and not rule.choices:
            assert f"{rule.expected_one[1:]}." in text, option.dest


@pytest.mark.parametrize("command", WORKING)
def test_the_help_has_the_default_of_every_option(command):
    for option in options(command):
        if option.nargs != 0 and option.default not in (None, [], {}, ()):
            assert "default:" in argparse_help(command, option), option.dest


@pytest.mark.parametrize("command", WORKING)
def test_every_command_prints_the_version(command, run):
    assert run(command, *WORKING[command], "--version") == (0, f"{__version__}\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("command", WORKING)
def test_wrong_choices_and_missing_values(command, run):
    for option in options(command):
        name = option.option_strings[-1]
        if option.choices:
            for value in ("", "nonsense", "\x1b]0;title\x07", "x\ny"):
                given = (name, *[value] * (option.nargs if isinstance(option.nargs, int) else 1))
                assert_usage_error(command, run(command, *WORKING[command], *given), name)
        if option.nargs is None or option.nargs == "+":
            assert_usage_error(command, run(command, *WORKING[command], name), name)
        elif option.nargs == 0:
            assert_usage_error(command, run(command, *WORKING[command], f"{name}=x"), name)


@pytest.mark.slow
@pytest.mark.parametrize("command", WORKING)
def test_options_are_written_in_full(command, run):
    known = {name for option in options(command) for name in option.option_strings} | {"--help", "--version"}
    for name in known:
        short = name[:-1]
        if len(short) > 3 and short.startswith("--") and short not in known:
            assert_usage_error(
                command, run(command, *WORKING[command], short), f"there is no option {short}; did you mean --"
            )
            assert_usage_error(command, run(command, f"{short}=1"), f"there is no option {short}; did you mean --")


@pytest.mark.parametrize("command", WORKING)
def test_unknown_arguments(command, run):
    for given in (
        ["--nonsense-of-mine"],
        ["--nonsense-of-mine=3"],
        ["--\x1b[2J"],
        ["--\udcff"],
        ["--" + "x" * 9999],
        ["one", "two", "x"],
    ):
        assert_usage_error(command, run(command, *WORKING[command], *given))


@pytest.mark.parametrize(("command", "option"), [(name, option) for name, found in OPTIONS.items() for option in found])
def test_options_of_mlx_lm_have_a_hint(command, option, run):
    ended = run(command, *WORKING[command], option or "word")
    assert_usage_error(command, ended, OPTIONS[command][option])
    # A hint names options that exist.
    known = {name for each in options(command) for name in each.option_strings}
    words = OPTIONS[command][option].replace(",", " ").replace(":", " ").replace(";", " ").split()
    assert {word for word in words if word.startswith("--")} <= known
    assert not option or option not in known


@pytest.mark.parametrize("name", ["nonsense", "", "--nonsense", "trai", "\x1b[2J"])
@pytest.mark.parametrize("command", ["list", "data"])
def test_unknown_commands(command, name, run):
    assert_one_line(run(command, name), "there is no ")


PLACES = [
    *((name, "--model", "{place}") for name in ("train", "evaluate", "generate", "chat", "data records")),
    *((name, "--adapter", "{place}") for name in ("evaluate", "generate", "chat", "benchmark")),
    ("inspect", "--model", "{place}"),
    ("train", "--data", "{place}"),
    ("train", "--start", "{place}"),
    ("train", "-c", "{place}"),
    ("train", "--adapter-path", "data/../text.txt"),
    ("train", "--adapter-path", "text.txt/run"),
    ("train", "--adapter-path", "~nobody-here/run"),
    ("evaluate", "--output", "text.txt"),
    ("evaluate", "--output", "text.txt/run"),
    ("evaluate", "--tasks", "locomo", "--data", "locomo={place}"),
    ("evaluate", "--tasks", "mab", "--data", "mab={place}"),
    ("evaluate", "--tasks", "locomo", "--data", "locomo=empty", "--data", "locomo=text.txt"),
    ("generate", "--session", "data"),
    ("generate", "--session", "nowhere/chat.safetensors"),
    ("generate", "--session", "text.txt"),
    ("generate", "--remember", "{place}"),
    ("inspect", "--model", backbone(), "--text", "{place}"),
    *((name, "--plot", place) for name in ("inspect", "benchmark") for place in ("data", "x.txt", "nowhere/x.png")),
    ("convert", "--mlx-path", "data"),
    ("convert", "--mlx-path", "text.txt"),
]
# Places that `{place}` above stands for.
BAD_PLACES = ("nowhere", "anna/nothing", "data", "empty", "nul.txt", "", "a\x00b", "x" * 300, "~nobody-here/x")


CONVERTERS = ("data chat-logs", "data qasper")
TRIED = [
    (command, tuple(text.replace("{place}", place) for text in arguments))
    for command, *arguments in PLACES
    for place in (BAD_PLACES if "{place}" in " ".join(arguments) else BAD_PLACES[:1])
]


def assert_refused(ended: tuple[int, str, str]) -> None:
    assert ended[0] == 2, ended
    assert len([line for line in ended[2].splitlines() if line.startswith("error: ")]) == 1
    assert "Traceback" not in ended[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "arguments"), TRIED, ids=lambda part: part if isinstance(part, str) else shown(part)
)
def test_wrong_places(command, arguments, run):
    assert_refused(run(command, *WORKING[command], *arguments))


# An empty file of conversations gives no records, without an error.
INPUTS = [
    (command, place)
    for command in ("grow", "inspect", "upload", "convert", "data records", *CONVERTERS)
    for place in BAD_PLACES
    if (command, place) != ("data records", "empty")
]


@pytest.mark.slow
@pytest.mark.parametrize(("command", "place"), INPUTS)
def test_wrong_inputs(command, place, run):
    arguments = list(WORKING[command])
    arguments[1 if command in ("upload", "convert") else 0] = place
    assert_refused(run(command, *arguments))


@pytest.mark.parametrize("command", ["grow", "data recall", "data speech", "data records", *CONVERTERS])
def test_wrong_outputs(command, run):
    place = 0 if command in ("data recall", "data speech") else 1
    for target in ("data", "text.txt/made"):
        arguments = list(WORKING[command])
        arguments[place] = target
        assert_refused(run(command, *arguments))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5", "--chat-template-config is '5'; expected a JSON object"),
        ("[]", "is '[]'; expected a JSON object"),
        ("null", "expected a JSON object"),
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("{'a': 1}", "is not JSON"),
        ('{"a": 1, "a": 2}', "is JSON with 'a' twice (leave one of them out)"),
        ('{"a": {"b": 1, "b": 1}}', "with 'b' twice"),
        ('{"a": NaN}', "; expected finite numbers and whole characters"),
        ('{"a": [1e999]}', "; expected finite numbers and whole characters"),
        ('{"a": "\\ud800"}', "; expected finite numbers and whole characters"),
        ("[" * 10_000, "expected a JSON object"),
        ('{"a": 1' + "0" * 5000 + "}", "expected a JSON object"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "chat"])
def test_template_options_are_an_object(command, text, message, run):
    assert_usage_error(command, run(command, *WORKING[command], "--chat-template-config", text), message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "iters: 100000000000000000000",
            "--iters is 100000000000000000000; expected a whole number from 1 to 2**31 - 1",
        ),
        ("seed: 18446744073709551616", "; expected a whole number from 0 to 2**64 - 1"),
        ("seed: -1", "--seed is -1; expected"),
        ("learning_rate: .nan", "--learning-rate is nan; expected"),
        ("learning_rate: 1e300", "--learning-rate is 1e+300; expected"),
        ("rank: 1000000000", "rank is 1000000000; expected a whole number from 1 to 1,024"),
        ("alpha: .inf", "alpha is inf; expected"),
        ("batch_size: [4]", "--batch-size is [4]; expected"),
        ("batch_size: yes", "--batch-size is True; expected"),
        ("iters: 3\nseed: 1\niters: 4", "options.yaml has iters twice; leave one of them out"),
        ("fine_tune_type: lora\nnum_layers: 4", f"fine_tune_type: {TRAINING['fine_tune_type']}; num_layers: use"),
        ("train: false", "--train and --test are both off; expected at least one of them"),
        ("iters: !!int x", "options.yaml is not valid YAML"),
        ("iters: !!python/object/apply:os.system [ls]", "options.yaml is not valid YAML"),
        ("a: &a [1]\nb: *a\n? *a\n: 1", "options.yaml is not valid YAML"),
        ("[" * 5000, "options.yaml is not valid YAML"),
        ("iters: " + "9" * 5000, "options.yaml is not valid YAML"),
        ("iters: 2024-99-99", "options.yaml is not valid YAML"),
        ("#" * 100_000, "options.yaml has 100,000 bytes; expected a file of options, at most 65,536 bytes"),
    ],
    ids=lambda text: text[:30],
)
def test_wrong_options_in_a_file(text, message, folder, run):
    (folder / "options.yaml").write_text(text)
    assert_one_line(run("train", *WORKING["train"], "-c", "options.yaml"), message)


def test_what_mlx_lm_lora_asks_for_and_train_always_does(folder, run):
    # The data are missing; the options are not refused.
    assert_one_line(run("train", *WORKING["train"], "--train", "--mask-prompt"), "data has no train.jsonl")
    (folder / "options.yaml").write_text("train: true\nmask_prompt: true")
    assert_one_line(run("train", *WORKING["train"], "-c", "options.yaml"), "data has no train.jsonl")


@pytest.mark.parametrize("value", ["", "-5", "0", "1.5", "nan", "all", "9" * 5000, f"1{'0' * 20}"])
@pytest.mark.parametrize("command", ["generate", "chat"])
def test_wrong_histories(command, value, run):
    assert_usage_error(command, run(command, *WORKING[command], f"--history={value}"), "--history is ")


@pytest.mark.parametrize("value", ["", "maybe", "0", "no", "yes"])
def test_what_is_not_true_or_false(value, run):
    assert_usage_error("generate", run("generate", *WORKING["generate"], "--verbose", value), "expected True or False")


@pytest.mark.slow
@pytest.mark.parametrize("value", ["", "nonsense", "-5", "1.5", "99999", f"1{'0' * 20}", "9" * 5000, "\udcff"])
def test_wrong_tokens_that_end_a_reply(value, run):
    assert_one_line(run("generate", *WORKING["generate"], f"--extra-eos-token={value}"), "--extra-eos-token is ")


def test_data_of_a_task_are_named_once(run):
    places = ("--tasks", "locomo", "--data", "locomo=empty", "--data", "locomo=text.txt")
    assert_one_line(run("evaluate", *WORKING["evaluate"], *places), "--data names the data of locomo twice")
