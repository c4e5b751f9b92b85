"""Look into an adapter, a model with an adapter, or a chat; compare two adapters or two chats.

`--json` prints one object with these fields (what each is, with its shape and unit, is in the docstring of the class
that is named). What is by layer is an object whose names are the layers; a number that is not finite is null.

- `reports.adapter.AdapterReport`: kind ("adapter"), source, file, config, not_default, layers, parameters,
  parameters_in_use, bytes, state_shape, state_bytes, tensors (a list of name, shape, dtype, parameters, bytes, in_use,
  norms, zero_in), idle_layers, idle_state_heads, metadata
- `reports.model.ModelReport`: kind ("model"), model, adapter (as above), attached, layers, backbone_parameters, share,
  strengths, text, trace (null, or tokens, texts, layers, write, keep, correction, places, norms, final: a list as
  states below)
- `reports.session.SessionReport`: kind ("session"), file, file_id, bytes, origin (name, backbone, adapter, tokenizer),
  history, write, template_options, keeps_text, has_system_prompt, system, tokens, turns (a list of message_tokens,
  reply_tokens, ending_tokens, write, remembered, kept, changed, kept_mean, changed_mean, half_life, user, reply),
  state_shape, state_bytes, states (a list of layer, norm, largest, effective_rank)
- `reports.foreign.ForeignReport`: kind ("foreign session"), file, format, bytes, has_system_prompt, turns, tokens,
  system, messages, state_shape, state_bytes, states (as above)
- `reports.diff.AdapterDiff`: kind ("adapter diff"), a, b, identical, fields, tensors (by name: distances, which have
  relative and cosine, only_in_a, only_in_b, misfits), types
- `reports.diff.SessionDiff`: kind ("session diff"), a, b, identical, fields, parting (shared_turns, shared_tokens,
  where), states (distances, only_in_a, only_in_b, misfits)
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from rich.console import RenderableType

from mlx_deltamem.adapters.folder import load_adapter
from mlx_deltamem.adapters.loading import load
from mlx_deltamem.cli.command import command
from mlx_deltamem.files.atomic import user_path
from mlx_deltamem.inspection.adapter import AdapterReport, adapter_report
from mlx_deltamem.inspection.adapter_table import adapter_tables, model_tables
from mlx_deltamem.inspection.diff import AdapterDiff, SessionDiff, adapter_diff, session_diff
from mlx_deltamem.inspection.diff_table import adapter_diff_tables, session_diff_tables
from mlx_deltamem.inspection.document import as_document
from mlx_deltamem.inspection.foreign import ForeignReport, foreign_report
from mlx_deltamem.inspection.foreign_table import foreign_tables
from mlx_deltamem.inspection.model import ModelReport, attach_and_report
from mlx_deltamem.inspection.report import Report
from mlx_deltamem.inspection.session import SessionReport, session_report
from mlx_deltamem.inspection.session_table import session_tables
from mlx_deltamem.inspection.trace import trace_text
from mlx_deltamem.inspection.trace_table import trace_tables
from mlx_deltamem.sessions.file import SUFFIX
from mlx_deltamem.sessions.foreign.folder import foreign_format
from mlx_deltamem.show.plot import add_plot_option, check_plot, load_figures
from mlx_deltamem.show.printing import print_tables
from mlx_deltamem.show.progress import reading_progress

_DIFF = "diff"


def setup_arg_parser() -> argparse.ArgumentParser:
    """Set up and return the argument parser."""
    parser = argparse.ArgumentParser(
        prog="mlx_deltamem.inspect",
        usage="%(prog)s [options] ADAPTER_OR_SESSION\n       %(prog)s [options] diff A B",
        description=__doc__.partition("\n")[0],
    )
    parser.add_argument(
        "what",
        nargs="+",
        metavar="ADAPTER_OR_SESSION",
        help="An adapter (a folder, or a Hub repo USER/NAME[@REVISION]), the .safetensors file of a chat, or a chat of "
        "others (a session folder of the reference, a .npz of states). `diff A B` compares two adapters or two chats.",
    )
    parser.add_argument("--model", help="With an adapter: the folder or Hub repo of a model to attach it to.")
    parser.add_argument("--text", type=Path, metavar="FILE", help="With --model: a text to run through it.")
    parser.add_argument("--trust-remote-code", action="store_true", help="Run code that comes with the model.")
    parser.add_argument("--messages", action="store_true", help="With a chat: show its messages, which are private.")
    parser.add_argument("--json", action="store_true", help="Print one JSON document instead of tables.")
    add_plot_option(
        parser,
        "a figure (of an adapter its norms; with --text what the text did to the memory; of a chat its memory and what "
        "each turn did to it; of a diff the distances by layer)",
    )
    return parser


@command
def main() -> None:
    args = setup_arg_parser().parse_args()
    _check_options(args)
    if args.plot is not None:
        check_plot(args.plot)
    report = _inspect(args)
    if args.plot is not None:
        # First, since whoever reads the tables may go before their end.
        load_figures("inspection", "figures").draw(report, args.plot)
    if args.json:
        print(json.dumps(as_document(report), allow_nan=False))
    else:
        print_tables(_tables(report))
        if args.plot is not None:
            print(f"Drew {args.plot}")


def _check_options(args: argparse.Namespace) -> None:
    is_diff = args.what[0] == _DIFF
    if len(args.what) != (3 if is_diff else 1):
        raise ValueError(
            f"inspect got {' '.join(args.what)}; expected one adapter or session, or `diff` and two of a kind"
        )
    of_session = not is_diff and _is_session(args.what[0])
    if args.model is not None and (is_diff or of_session):
        raise ValueError("--model goes with one adapter; a session is inspected without its model, and so is a diff")
    if args.text is not None and args.model is None:
        raise ValueError("--text needs a --model to run the text through")
    if args.messages and not of_session:
        raise ValueError("--messages goes with one session")


def _is_session(name: str) -> bool:
    """Whether a name is meant to be a chat rather than an adapter."""
    path = user_path(name)
    if foreign_format(path) is not None:
        return True
    return not path.is_dir() and (path.exists() or path.suffix == SUFFIX)


def _inspect(args: argparse.Namespace) -> Report:
    if args.what[0] == _DIFF:
        return _diff(*args.what[1:])
    if args.model is not None:
        return _model(args)
    if _is_session(args.what[0]):
        path = user_path(args.what[0])
        report = session_report if foreign_format(path) is None else foreign_report
        return report(path, args.messages)
    return adapter_report(load_adapter(args.what[0]))


def _diff(a: str, b: str) -> AdapterDiff | SessionDiff:
    kinds = {name: "a session" if _is_session(name) else "an adapter" for name in (a, b)}
    if len(set(kinds.values())) > 1:
        raise ValueError(f"{a} is {kinds[a]} and {b} is {kinds[b]}; expected two adapters or two sessions")
    if _is_session(a):
        return session_diff(user_path(a), user_path(b))
    return adapter_diff(load_adapter(a), load_adapter(b))


def _model(args: argparse.Namespace) -> ModelReport:
    text = None if args.text is None else _read_text(user_path(args.text))
    adapter = load_adapter(args.what[0])
    model, tokenizer = load(args.model, trust_remote_code=args.trust_remote_code)
    report = attach_and_report(model, adapter, args.model)
    if text is None:
        return report
    with reading_progress("Reading the text") as progress:
        return replace(report, text=str(args.text), trace=trace_text(model, tokenizer, text, progress))


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"there is no text file {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); expected a text") from None
    if not text.strip():
        raise ValueError(f"{path} is empty; expected a text")
    return text


def _tables(report: Report) -> list[RenderableType]:
    match report:
        case AdapterReport():
            return adapter_tables(report)
        case ModelReport():
            return model_tables(report) + ([] if report.trace is None else trace_tables(report))
        case SessionReport():
            return session_tables(report)
        case ForeignReport():
            return foreign_tables(report)
        case AdapterDiff():
            return adapter_diff_tables(report)
        case SessionDiff():
            return session_diff_tables(report)


if __name__ == "__main__":
    main()
