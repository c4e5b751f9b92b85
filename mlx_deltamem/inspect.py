"""Look into an adapter, a model with an adapter, or a chat; compare two adapters or two chats.

`--json` prints one object with the fields below. The docstring of each class has their meanings, shapes and units. The
numbers of layers are objects with the indices of the layers as names. A number that is not finite is null.

- `inspection.adapter.AdapterReport`: kind ("adapter"), source, file, config, not_default, layers, parameters,
  parameters_in_use, bytes, state_shape, state_bytes, tensors (a list of name, shape, dtype, parameters, bytes, in_use,
  norms, zero_in), idle_layers, idle_state_heads, metadata
- `inspection.model.ModelReport`: kind ("model"), model, adapter (as above), attached, layers, backbone_parameters,
  share, strengths, text, trace (null, or tokens, texts, layers, write, keep, correction, places, norms, final: a list
  as states below), perplexity (null, or tokens, frozen, written, carried_read, carried_written)
- `inspection.session.SessionReport`: kind ("session"), file, file_id, bytes, origin (name, backbone, adapter,
  tokenizer), history, write, template_options, keeps_text, has_system_prompt, system, tokens, turns (a list of
  message_tokens, reply_tokens, ending_tokens, write, remembered, kept, changed, kept_mean, changed_mean, half_life,
  user, reply), state_shape, state_bytes, states (a list of layer, norm, largest, effective_rank)
- `inspection.foreign.ForeignReport`: kind ("foreign session"), file, format, bytes, has_system_prompt, turns, tokens,
  system, messages, state_shape, state_bytes, states (as above)
- `inspection.adapter_diff.AdapterDiff`: kind ("adapter diff"), a, b, identical, fields, tensors (by name: distances,
  which have relative and cosine, only_in_a, only_in_b, misfits), types
- `inspection.session_diff.SessionDiff`: kind ("session diff"), a, b, identical, fields, parting (shared_turns,
  shared_tokens, where), states (distances, only_in_a, only_in_b, misfits)
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.options.rule import PLACE
from mlx_deltamem.show.plot import ENDINGS, PAGE, add_plot_option, check_dark, check_plot, load_figures
from mlx_deltamem.show.printable import json_document

if TYPE_CHECKING:
    from mlx_deltamem.inspection.report import Report

_DIFF = "diff"


def setup_arg_parser() -> argparse.ArgumentParser:
    """Make the argument parser of the command."""
    parser = Parser(
        prog="mlx_deltamem.inspect",
        usage="%(prog)s [options] ADAPTER_OR_SESSION\n       %(prog)s [options] diff A B",
        description=str(__doc__).partition("\n")[0],
    )
    parser.add_argument(
        "what",
        nargs="+",
        metavar="ADAPTER_OR_SESSION",
        help="An adapter (a folder, or a Hub repo USER/NAME[@REVISION]), a chat (a .safetensors file), or a chat of "
        "another implementation (a session folder of the reference, or a .npz file of states). `diff A B` compares two "
        "adapters or two chats.",
    )
    parser.add_argument(
        "--model", type=PLACE, help="With an adapter: the folder or Hub repo of a model to attach it to."
    )
    parser.add_argument("--text", type=Path, metavar="FILE", help="With --model: a text file to run through the model.")
    parser.add_argument("--trust-remote-code", action="store_true", help="Run code that comes with the model.")
    parser.add_argument("--messages", action="store_true", help="With a chat: show its messages too. They are private.")
    parser.add_argument("--json", action="store_true", help="Print one JSON document instead of tables.")
    add_plot_option(
        parser,
        "a figure",
        " The figure shows the norms of an adapter; with --text the effect of the text on the memory; of a chat its "
        "memory and the effect of each turn; of a diff the distances by layer. With --text, a file that ends in .html "
        "becomes a page in which one can point at tokens and layers, and nothing has to be installed for it.",
    )
    return parser


@command
def main() -> None:
    """Run the command."""
    parser = setup_arg_parser()
    args = parser.parse_args()
    if len(args.what) != (3 if args.what[0] == _DIFF else 1):
        parser.error(f"inspect got {' '.join(args.what)}; expected one adapter or session, or `diff` and two of a kind")
    _check_options(args)
    if args.plot is not None:
        check_plot(args.plot, ENDINGS if args.text is None else (*ENDINGS, PAGE))
    from mlx_deltamem.inspection.document import as_document
    from mlx_deltamem.show.tables import print_tables

    report = _report(args)
    if args.plot is not None:
        # Before the tables: a reader such as `head` may close the output, which ends the command.
        _draw(report, args.plot, args.dark)
    if args.json:
        print(json_document(as_document(report)))
    else:
        print_tables(report.tables())
        if args.plot is not None:
            print(f"Drew {args.plot}")


def _draw(report: "Report", path: Path, dark: bool) -> None:
    """Draw a report to a file.

    Raises:
        OSError: The file cannot be written; its old content is still there.
    """
    from mlx_deltamem.inspection.model import ModelReport
    from mlx_deltamem.inspection.trace_page import write_trace_page

    if path.suffix.lower() == PAGE and isinstance(report, ModelReport) and report.trace is not None:
        write_trace_page(report.trace, report.trace_title, path)
    else:
        load_figures("inspection", "figures", dark).draw(report, path)


def _check_options(args: argparse.Namespace) -> None:
    is_diff = args.what[0] == _DIFF
    from mlx_deltamem.inspection.report import is_session

    of_session = not is_diff and is_session(args.what[0])
    if args.model is not None and (is_diff or of_session):
        raise ValueError("--model goes with one adapter; a session is inspected without its model, and so is a diff")
    if args.text is not None and args.model is None:
        raise ValueError("--text needs a --model to run the text through")
    check_dark(args.dark, args.plot)
    if args.messages and not of_session:
        raise ValueError("--messages goes with one session")


def _report(args: argparse.Namespace) -> "Report":
    from mlx_deltamem.inspection.report import diff, report_on, report_on_model

    if args.what[0] == _DIFF:
        return diff(*args.what[1:])
    if args.model is not None:
        return report_on_model(args.what[0], args.model, args.text, args.trust_remote_code)
    return report_on(args.what[0], args.messages)


if __name__ == "__main__":
    main()
