"""Check the files of a model's tokenizer: before it is loaded, and after that failed."""

import importlib.util
import json
import pkgutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from tokenizers import Tokenizer

from mlx_deltamem.adapters.json_file import check_not_pointer, read_json_object, read_text
from mlx_deltamem.adapters.model_config import shown

_TOKENIZER = "tokenizer.json"
_SETTINGS = "tokenizer_config.json"
_TEMPLATE = "chat_template.jinja"
_OTHERS = ("special_tokens_map.json", "added_tokens.json")
# A tokenizer is in one of these, or comes as a program.
_VOCABULARIES = (
    _TOKENIZER,
    "*.model",
    "vocab.*",
    "*vocab*.json",
    "tekken.json",
    "*.tiktoken",
    "*.spm",
    "*.bpe",
    "*.py",
)
# The parts of mlx-lm that a tokenizer can name.
_NAMED = {"chat_template_type": "mlx_lm.chat_templates", "tool_parser_type": "mlx_lm.tool_parsers"}
# The parts of tokenizer.json that may be empty, and what is then in their place.
_PARTS: dict[str, object] = {
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": None,
}
_SMALL_MODEL = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}


def check_tokenizer(folder: Path) -> None:
    """Check the files of a tokenizer that are quickly read.

    Raises:
        FileNotFoundError: The folder has no tokenizer.
        ValueError: A file is damaged, or names something that mlx-lm does not have. The error names file and field.
    """
    if not any(any(folder.glob(pattern)) for pattern in _VOCABULARIES):
        raise FileNotFoundError(
            f"{folder} has no {_TOKENIZER}; expected the tokenizer of the model: use a complete copy"
        )
    for name in (_TOKENIZER, _SETTINGS):
        path = folder / name
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} is not a file; expected a JSON object")
        if path.exists():
            check_not_pointer(path)
    if (folder / _SETTINGS).exists() and (problem := next(_wrong_settings(read_json_object(folder / _SETTINGS)), None)):
        raise ValueError(f"{folder / _SETTINGS} {problem}: correct it, or use a complete copy of the model")


def tokenizer_problem(folder: Path) -> str | None:
    """Find out why a tokenizer could not be loaded; None if its files do not show it.

    Returns:
        A sentence that names the file, and the field if there is one.
    """
    try:
        if (folder / _TOKENIZER).exists() and (problem := _tokenizer_json_problem(folder / _TOKENIZER)):
            return f"{folder / _TOKENIZER} {problem}"
        for name in _OTHERS:
            if (folder / name).exists():
                read_json_object(folder / name)
        if (folder / _TEMPLATE).is_file():
            read_text(folder / _TEMPLATE)
        if (folder / _SETTINGS).exists() and (
            problem := next(_suspected_settings(read_json_object(folder / _SETTINGS)), None)
        ):
            return f"{folder / _SETTINGS} {problem}"
    except (ValueError, OSError) as error:
        return str(error)
    return None


def _wrong_settings(settings: Mapping[str, object]) -> Iterator[str]:
    """Fields with which a tokenizer cannot be loaded, or with which it fails later."""
    for field, package in _NAMED.items():
        name, known = settings.get(field), _modules(package)
        if name is not None and name != "" and name not in known:
            yield f"has {field} {shown(name)}, which this mlx-lm does not have; expected one of {', '.join(known)}"
    length = settings.get("model_max_length")
    if not isinstance(length, int | float | None):
        yield f"has model_max_length {shown(length)}; expected a number"
    template = settings.get("chat_template")
    entries = list(template.values()) if isinstance(template, dict) else template
    if isinstance(entries, list) and isinstance(template, list):
        entries = [each.get("template") if isinstance(each, dict) and "name" in each else each for each in entries]
        if any(isinstance(each, str) for each in template):
            entries = [None]
    if not isinstance(entries, str | None) and not (
        isinstance(entries, list) and all(isinstance(each, str) for each in entries)
    ):
        yield (
            f"has chat_template {shown(template)}; expected a text, or a list of JSON objects with a name and a "
            "template"
        )


def _suspected_settings(settings: Mapping[str, object]) -> Iterator[str]:
    """Fields that may be the reason why a tokenizer was not loaded."""
    for name, value in settings.items():
        if name.endswith("_token") and not (isinstance(value, str | bool | None) or _is_token(value)):
            yield f"has {name} {shown(value)}; expected the text of a token"
    for name in ("additional_special_tokens", "extra_special_tokens"):
        value = settings.get(name)
        entries = list(value.values()) if isinstance(value, dict) and name.startswith("extra") else value or []
        if not isinstance(entries, list) or not all(isinstance(each, str) or _is_token(each) for each in entries):
            yield f"has {name} {shown(value)}; expected a list of tokens"
    added = settings.get("added_tokens_decoder", {})
    if not isinstance(added, dict) or not all(key.isdecimal() and _is_token(each) for key, each in added.items()):
        yield f"has added_tokens_decoder {shown(added)}; expected a JSON object of tokens by their ids"
    if not isinstance(settings.get("tokenizer_class"), str | None):
        yield f"has tokenizer_class {shown(settings['tokenizer_class'])}; expected the name of a class"


def _is_token(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("content"), str)


def _modules(package: str) -> list[str]:
    """The names of the modules of a package, which is not imported."""
    spec = importlib.util.find_spec(package)
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    return sorted(module.name for module in pkgutil.iter_modules(places))


def _tokenizer_json_problem(path: Path) -> str | None:
    """Find the part of a tokenizer.json that the tokenizers library refuses."""
    content = read_json_object(path)
    if "model" not in content:
        return "has no model; expected a tokenizer with its vocabulary: use a complete copy"
    added = content.get("added_tokens")
    if not isinstance(added, list):
        problem = "no added_tokens" if "added_tokens" not in content else f"added_tokens {shown(added)}"
        return f"has {problem}; expected a list of tokens: use a complete copy"
    # Each part is tried with all others empty.
    plain = {**content, **_PARTS}
    if refused := _refusal(plain):
        unknown = [shown(name) for name in content if name not in ("version", "model", *_PARTS)]
        wrong = "model" if _refusal({**plain, "model": _SMALL_MODEL}) is None else " or ".join(["version", *unknown])
        return f"has a {wrong} that cannot be read ({refused}); use a complete copy"
    for name, empty in _PARTS.items():
        if content.get(name, empty) == empty:
            continue
        # A post-processor is checked against the vocabulary, so that it needs the tokens that were added.
        tokens = {"added_tokens": added} if name != "added_tokens" else {}
        if refused := _refusal({**plain, **tokens, name: content[name]}):
            return f"has {_article(name)}{name} that cannot be read ({refused}); use a complete copy"
    return None


def _article(name: str) -> str:
    return "" if name.endswith("s") else "a "


def _refusal(content: Mapping[str, object]) -> str | None:
    """Why the tokenizers library refuses the content of a tokenizer.json; None if it does not."""
    try:
        Tokenizer.from_str(json.dumps(content))
    # The library raises plain Exception.
    except Exception as error:
        return " ".join(str(error).split())[:200]
    return None
