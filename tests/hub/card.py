"""How the loopback Hub reads and checks the metadata block of a model card.

Rules and messages follow the Hub's documentation of model cards (https://huggingface.co/docs/hub/model-cards), as far
as the card of an adapter can break them. The real Hub has more rules.
"""

import re
from collections.abc import Iterator

import yaml

Metadata = dict[str, object]

# The expression of the Hub, from huggingface_hub/repocard.py.
BLOCK = re.compile(r"^(\s*---(?:\r\n|\r|\n))([\S\s]*?)((?:\r\n|\r|\n)---[ \t]*(\r\n|\n|$))")
REPOSITORY_NAME = re.compile(r"(?:[\w.-]{1,96}/)?[\w.-]{1,96}", re.ASCII)
ARXIV = re.compile(r"arxiv\.org/(?:abs|pdf)/(\d{4}\.\d{4,5})|arxiv:\s?(\d{4}\.\d{4,5})", re.IGNORECASE)
RELATIONS = ("adapter", "finetune", "merge", "quantized")
# From https://huggingface.co/docs/hub/repositories-licenses: the common licences of models and adapters.
CREATIVE_COMMONS = tuple(
    f"cc-{terms}-{version}"
    for terms in ("by", "by-sa", "by-nc", "by-nd", "by-nc-nd", "by-nc-sa")
    for version in ("2.0", "3.0", "4.0")
)
LLAMA = ("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4")
GNU = ("gpl-2.0", "gpl-3.0", "lgpl-2.1", "lgpl-3.0", "agpl-3.0")
PERMISSIVE = ("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "mpl-2.0", "isc", "unlicense", "cc0-1.0")
MODEL_TERMS = ("openrail", "openrail++", "gemma", "apple-amlr", "intel-research", "unknown", "other")
LICENSES = (*PERMISSIVE, *CREATIVE_COMMONS, *GNU, *LLAMA, *MODEL_TERMS)


def problems(readme: str) -> tuple[list[str], list[str]]:
    """Return the errors and the warnings of a card. The Hub refuses a card with errors."""
    block = BLOCK.search(readme)
    if block is None or not block[2].strip():
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        metadata = yaml.safe_load(block[2])
    except yaml.YAMLError as error:
        return ["bad YAML: " + " ".join(str(error).split())], []
    if not isinstance(metadata, dict):
        return ['"metadata" must be of type object'], []
    return [*_unknown_values(metadata), *_wrong_types(metadata)], []


def metadata(readme: str) -> Metadata:
    """Return the metadata block; empty if there is none, or if the Hub would refuse it."""
    block = BLOCK.search(readme)
    errors, warnings = problems(readme)
    return {} if block is None or errors or warnings else yaml.safe_load(block[2])


def tags(readme: str) -> list[str]:
    """Return the tags of a repository: those in the card, and those that the Hub makes from the other metadata."""
    card = metadata(readme)
    relation = card.get("base_model_relation")
    bases = _listed(card.get("base_model"))
    return [
        *_listed(card.get("library_name")),
        *_listed(card.get("tags")),
        *_listed(card.get("pipeline_tag")),
        *(f"arxiv:{old or new}" for old, new in dict.fromkeys(ARXIV.findall(readme))),
        *(f"base_model:{base}" for base in bases),
        *(f"base_model:{relation}:{base}" for base in bases if relation),
        *(f"license:{name}" for name in _listed(card.get("license"))),
    ]


def _unknown_values(card: Metadata) -> Iterator[str]:
    if any(name not in LICENSES for name in _listed(card.get("license"))):
        yield f'"license" must be one of [{", ".join(LICENSES)}]'
    if card.get("base_model_relation", RELATIONS[0]) not in RELATIONS:
        yield f'"base_model_relation" must be one of [{", ".join(RELATIONS)}]'
    for key, what in {"base_model": "model", "datasets": "dataset"}.items():
        for name in _listed(card.get(key)):
            if not isinstance(name, str) or not REPOSITORY_NAME.fullmatch(name):
                yield f'"{key}" with value "{name}" is not valid. Use a {what} id from https://hf.co/{what}s.'


def _wrong_types(card: Metadata) -> Iterator[str]:
    for key in ("tags", "model-index"):
        if not isinstance(card.get(key, []), list):
            yield f'"{key}" must be an array'
    for key in ("library_name", "pipeline_tag", "license_name", "license_link"):
        if not isinstance(card.get(key, ""), str):
            yield f'"{key}" must be a string'


def _listed(value: object) -> list[object]:
    """Return metadata that may be one value or a list as a list."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
