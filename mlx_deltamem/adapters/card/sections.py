"""The sections of an adapter's model card in Markdown, and the pictures that a card shows."""

import hashlib
import os
import re
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict, cast
from urllib.parse import unquote

from mlx_deltamem.adapters.untrusted import shown
from mlx_deltamem.core.adapter import CURVES_FILE, METRICS_FILE, RESULTS_FILE, WEIGHTS_FILE, Adapter, dtype_name
from mlx_deltamem.core.config import CONFIG_FILE
from mlx_deltamem.files.jsonl import json_lines, parsed_json
from mlx_deltamem.files.regular import read_file
from mlx_deltamem.files.text import text_problem

PAPER = "2605.12357"

MOST_RESULTS_BYTES = 16 << 20
_MOST_RESULTS = 200_000
_LONGEST_SECONDS = 1e10
_MOST_SHOWN = 300

_RESULT_COLUMNS = ("task", "condition", "metric", "value", "interval", "questions")

_PICTURES = {".png", ".svg", ".jpg", ".jpeg", ".gif", ".webp"}
# Markdown's `![text](path)` and `![text](<path with spaces>)`, and HTML's `<img src="path">`. The text and the path may
# have pairs of brackets, with none in them. Each part ends at another opening bracket. Otherwise a card of many opening
# brackets would take quadratic time.
_SHOWN = re.compile(
    r"!\[(?:[^][]|\[[^][]*\])*+\]\(\s*(?:<([^<>]+)>|((?:[^\s()]|\([^\s()]*\))+))"
    r"|<img\b[^<>]*?\bsrc\s*=\s*[\"']([^\"']+)[\"']",
    re.I,
)


class _Ratio(TypedDict):
    """A perplexity of the model with a memory, divided by that of the frozen model."""

    meaning: str
    ratio: float | None
    interval: list[float | None]
    texts: int


class _Share(TypedDict):
    """The share of replies or tokens that are as the frozen model's, in %."""

    value: float | None
    interval: list[float | None]
    prompts: int


class _Health(TypedDict):
    """The `health` of results.json, as mlx_deltamem.evaluate writes it."""

    perplexity: list[_Ratio]
    replies_equal: _Share
    tokens_alike: _Share


def card_sections(folder: Path, adapter: Adapter, repo: str | None, base_models: list[str]) -> dict[str, str]:
    """Return the sections of a card by name, in their order on the card.

    Args:
        folder: The adapter's folder.
        adapter: The adapter in the folder.
        repo: The Hub repo that the card is for, if any.
        base_models: The models in the card's metadata.

    Raises:
        ValueError: The folder's results.json is damaged.
    """
    return {
        "title": _title(repo, base_models),
        "usage": _usage(repo or "THIS_FOLDER", base_models[0] if base_models else "BACKBONE"),
        "adapter": _configuration(adapter),
        "training": _training(folder, adapter),
        "results": _results(folder / RESULTS_FILE),
        "provenance": provenance(adapter),
        "files": _files(folder),
    }


def _title(repo: str | None, base_models: list[str]) -> str:
    models = " and ".join(f"[{model}](https://huggingface.co/{model})" for model in base_models)
    return f"""# {repo.split("/")[1] if repo else "A δ-mem adapter"}

An online memory for {models or "a frozen language model"}, by the delta rule
([arXiv {PAPER}](https://arxiv.org/abs/{PAPER})), for MLX."""


def _usage(repo: str, base_model: str) -> str:
    return f"""## Use

```shell
pip install mlx-deltamem
mlx_deltamem.chat --model {base_model} --adapter {repo}
```"""


def _configuration(adapter: Adapter) -> str:
    config, layers = adapter.config, adapter.weights_by_layer()
    dtypes = sorted({dtype_name(tensor.dtype) for tensor in adapter.weights.values()})
    gates = "one per row" if config.rankwise_gates else "one per head"
    if config.read_gate:
        gates += ", and one per head on what is read"
    rows = {
        "layers": f"{len(layers)} ({min(layers)} to {max(layers)})",
        "rank": config.rank,
        "state heads": config.num_state_heads,
        "alpha": config.alpha,
        "corrected": ", ".join(config.delta_heads) or "nothing",
        "written by": config.memory_write_granularity.removesuffix("_mean"),
        "gates": gates,
        **({"keys": "with the memory query of the token written before (key shift)"} if config.key_shift else {}),
        "update": config.state_update_mode,
        "parameters": f"{adapter.parameters:,}",
        "weights": ", ".join(dtypes),
        "memory": f"{adapter.state_bytes:,} bytes for each sequence, float32",
    }
    return "## Adapter\n\n" + _table(("", ""), rows.items())


def _training(folder: Path, adapter: Adapter) -> str:
    """Return the section on the training: data, duration and curves; empty if the adapter was not trained here."""
    if "trained" not in adapter.metadata:
        return ""
    lines = ["## Training", "", f"Trained by mlx_deltamem {adapter.metadata['trained']}."]
    if (seconds := _training_seconds(folder / METRICS_FILE)) is not None:
        lines.append(f"It took {timedelta(seconds=round(seconds))}.")
    if (folder / CURVES_FILE).is_file():
        lines += ["", f"![Curves of the training]({CURVES_FILE})"]
    return "\n".join(lines)


def _training_seconds(path: Path) -> float | None:
    """Return the duration of a run in seconds, from the last of its reports."""
    if not path.is_file():
        return None
    rows = [record.value for record in json_lines(path)]
    seconds = [row["seconds"] for row in rows if isinstance(row, dict) and "seconds" in row]
    last = seconds[-1] if seconds else None
    return float(last) if isinstance(last, int | float) and 0 <= last < _LONGEST_SECONDS else None


def _results(path: Path) -> str:
    """Return the sections on results and on the model's health, each only if results.json has such numbers."""
    if not path.exists():
        return ""
    try:
        parsed, problem = parsed_json(read_file(path, MOST_RESULTS_BYTES), _MOST_RESULTS)
        if problem:
            raise ValueError(problem)
        content = cast("dict[str, Any]", parsed)
        rows = [[_cell(result.get(column)) for column in _RESULT_COLUMNS] for result in content["results"]]
        health = _health(content["health"]) if "health" in content else ""
        results = "" if health and not rows else "## Results\n\n" + _table(_RESULT_COLUMNS, rows)
        text = "\n\n".join(filter(None, [results, health]))
        kind, detail = text_problem(text)
        if kind:
            raise ValueError(f"{kind}, {detail.split(' at ')[0]}")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        problem = shown(f"{type(error).__name__}: {error}", _MOST_SHOWN)
        raise ValueError(f"{path} is damaged ({problem}); expected an object with a list of `results`") from None
    return text


def _health(found: _Health) -> str:
    ratios = [
        (_cell(each["meaning"]), _cell(each["ratio"]), _cell(each["interval"]), _cell(each["texts"]))
        for each in found["perplexity"]
    ]
    shares = [
        (name, _cell(share["value"]), _cell(share["interval"]), _cell(share["prompts"]))
        for name, share in (("whole replies", found["replies_equal"]), ("likeliest tokens", found["tokens_alike"]))
    ]
    return "\n\n".join(
        [
            "## What it does to the model",
            _table(("plain English that is", "perplexity ÷ the frozen model's", "interval", "texts"), ratios),
            _table(("replies with nothing told", "as the frozen model's, %", "interval", "prompts"), shares),
        ]
    )


def provenance(adapter: Adapter) -> str:
    """Return the section on the adapter that this one was made from and how; empty if it was made from no other."""
    metadata, lines = adapter.metadata, []
    if source := metadata.get("source_adapter"):
        repo, _, revision = source.partition("@")
        at = f" at revision `{revision}`" if revision else ""
        under = f", which is under the licence {metadata['source_license']}" if "source_license" in metadata else ""
        lines.append(f"Made from [{repo}](https://huggingface.co/{repo}){at}{under}.")
    if "converted_from" in metadata:
        lines.append(
            f"Converted to safetensors by mlx_deltamem {metadata.get('mlx_deltamem', '')} from "
            f"`{metadata['converted_from']}` (SHA-256 `{metadata.get('converted_from_sha256', 'unknown')}`)."
        )
    if "changed" in metadata:
        lines.append(f"Changed: {metadata['changed']}.")
    return "\n".join(["## Where it comes from", "", *lines]) if lines else ""


def _files(folder: Path) -> str:
    rows = []
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        content = (folder / name).read_bytes()
        rows.append((name, f"{len(content):,}", f"`{hashlib.sha256(content).hexdigest()}`"))
    return "## Files\n\n" + _table(("file", "bytes", "SHA-256"), rows)


def _table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    header = list(header)
    lines = [header, ["---"] * len(header), *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    """Format a value of results.json as a cell of a table."""
    if value is None:
        return ""
    if isinstance(value, list):
        return " to ".join(map(_cell, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(str(value).split()).replace("|", "\\|")


def shown_pictures(folder: Path, card: str) -> list[str]:
    """Return the paths of the folder's pictures that a card shows, relative to the folder.

    Pictures outside the folder, in hidden folders or under an absolute path are left out, and those that are not there.
    A path may be that of a link; nothing is opened here.
    """
    paths = dict.fromkeys(_picture(unquote(next(filter(None, match.groups())))) for match in _SHOWN.finditer(card))
    return [path for path in paths if path and os.path.lexists(folder / path)]


def _picture(target: str) -> str:
    """Return the relative path of a picture, or an empty string."""
    path = PurePosixPath(target)
    is_local = not path.is_absolute() and ":" not in target and not any(part.startswith(".") for part in path.parts)
    return str(path) if is_local and path.suffix.lower() in _PICTURES else ""
