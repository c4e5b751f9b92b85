"""The report on an adapter or a chat that a user names, or on two of them."""

from dataclasses import replace
from pathlib import Path

from mlx_deltamem.adapters.card.folder import load_with_card
from mlx_deltamem.adapters.loading import load
from mlx_deltamem.files.atomic import user_path
from mlx_deltamem.inspection.adapter import AdapterReport, adapter_report
from mlx_deltamem.inspection.adapter_diff import AdapterDiff, adapter_diff
from mlx_deltamem.inspection.foreign import ForeignReport, foreign_report
from mlx_deltamem.inspection.model import ModelReport, attach_and_report
from mlx_deltamem.inspection.perplexity import text_perplexities
from mlx_deltamem.inspection.session import SessionReport, session_report
from mlx_deltamem.inspection.session_diff import SessionDiff, session_diff
from mlx_deltamem.inspection.trace import trace_text
from mlx_deltamem.sessions.foreign.folder import foreign_format
from mlx_deltamem.sessions.stored.file import SUFFIX
from mlx_deltamem.show.progress import reading_progress

Report = AdapterReport | ModelReport | SessionReport | ForeignReport | AdapterDiff | SessionDiff


def is_session(name: str) -> bool:
    """Whether a name stands for a chat. If not, it stands for an adapter: a folder, or a Hub repo."""
    path = user_path(name)
    if foreign_format(path) is not None:
        return True
    return not path.is_dir() and (path.exists() or path.suffix == SUFFIX)


def report_on(name: str, with_texts: bool = False) -> AdapterReport | SessionReport | ForeignReport:
    """Measure an adapter or a chat.

    Args:
        name: The folder or Hub repo of an adapter, or the file or folder of a chat.
        with_texts: Whether the report on a chat has the texts of its messages, which are private.

    Raises:
        FileNotFoundError: There is no such adapter or chat.
        ValueError: It is damaged, or something else.
    """
    if not is_session(name):
        return adapter_report(load_with_card(name))
    path = user_path(name)
    form = foreign_format(path)
    return session_report(path, with_texts) if form is None else foreign_report(path, form, with_texts)


def report_on_model(adapter: str, model: str, text: Path | None, trust_remote_code: bool) -> ModelReport:
    """Attach an adapter to a model, measure both, and run a text through the model, several times.

    Args:
        adapter: The folder or Hub repo of the adapter.
        model: The folder or Hub repo of the model.
        text: The file of a text; None runs nothing.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        FileNotFoundError: There is no such adapter, model or file.
        ValueError: The adapter does not fit, or the file holds no text that fits into the model's window.
    """
    content = None if text is None else _read_text(user_path(text))
    loaded = load_with_card(adapter)
    backbone, tokenizer = load(model, trust_remote_code=trust_remote_code)
    report = attach_and_report(backbone, loaded, model)
    if content is None:
        return report
    with reading_progress("Reading the text") as progress:
        trace = trace_text(backbone, tokenizer, content, progress)
    perplexity = text_perplexities(backbone, tokenizer, trace.tokens)
    return replace(report, text=str(text), trace=trace, perplexity=perplexity)


def diff(a: str, b: str) -> AdapterDiff | SessionDiff:
    """Compare two adapters or two chats, by their names as in `report_on`.

    Raises:
        FileNotFoundError: There is no such adapter or chat.
        ValueError: One is an adapter and the other a chat; or one is damaged, or something else.
    """
    kinds = {name: "a session" if is_session(name) else "an adapter" for name in (a, b)}
    if len(set(kinds.values())) > 1:
        raise ValueError(f"{a} is {kinds[a]} and {b} is {kinds[b]}; expected two adapters or two sessions")
    if is_session(a):
        return session_diff(user_path(a), user_path(b))
    return adapter_diff(load_with_card(a), load_with_card(b))


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
