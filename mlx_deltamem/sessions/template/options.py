"""The options of a chat's template: tools, and other variables such as `enable_thinking`."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.files.jsonl import Json
from mlx_deltamem.sessions.text.json_text import AROUND_OPTION, AROUND_TOOL, json_text

# The options of a chat, where its user does not give others.
DEFAULTS: Mapping[str, object] = {"enable_thinking": False}
# Arguments of apply_chat_template that are set here, or with which it would return something else than the text.
_OURS = (
    "add_generation_prompt",
    "continue_final_message",
    "conversation",
    "conversations",
    "max_length",
    "messages",
    "padding",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "sanitize_control_tokens",
    "self",
    "tokenize",
    "tokenizer_kwargs",
    "truncation",
)
# Tools that a model is offered, in OpenAI's form.
Tools = Sequence[Mapping[str, Json]]


def parse_tools(given: object) -> list[dict[str, Json]]:
    """Check tools for a chat template, in OpenAI's form.

    Returns:
        Copies.

    Raises:
        ValueError: They are not a list of JSON objects, or one is nested deeper than a session file can hold.
    """
    try:
        if isinstance(given, Sequence) and all(isinstance(tool, Mapping) for tool in given):
            return [json.loads(json_text(dict(tool), AROUND_TOOL)) for tool in given]
        problem = f"they are of type {type(given).__name__}"
    except (ValueError, TypeError, RecursionError) as error:
        problem = " ".join(str(error).split())
    raise ValueError(
        f"the tools are not a list of JSON objects ({problem}); expected the form of OpenAI's API: give one dict for "
        "each tool"
    )


def check_names(options: Mapping[str, object], taken: Collection[str] = ()) -> None:
    """Check that no template option has the name of something else.

    Args:
        options: The options, by name.
        taken: Names that an option cannot have, besides those of arguments of `apply_chat_template`.

    Raises:
        ValueError: An option has such a name. The error lists them.
    """
    if clash := [name for name in options if name in _OURS or name in taken]:
        raise ValueError(
            f"the template options name {', '.join(clash)}; expected options that the chat does not set itself, such "
            "as enable_thinking: leave them out"
        )


def check_storable(options: Mapping[str, object]) -> None:
    """Check that a session file can hold the options.

    Raises:
        ValueError: An option is not JSON or is nested deeper than a session file can hold, or the tools are not a list
            of JSON objects.
    """
    for name, value in options.items():
        if name == "tools":
            parse_tools(value)
        try:
            json_text(name)
            json_text(value, AROUND_OPTION)
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(
                f"the template option {name!r} is not JSON ({error}); a session file holds JSON only: leave it out"
            ) from None


def has_other_template(options: Mapping[str, object], tokenizer: TokenizerWrapper) -> bool:
    """Whether the options have a chat template that is not the tokenizer's."""
    return options.get("chat_template") not in (None, tokenizer.chat_template)


def check_trusted(
    path: Path | str, options: Mapping[str, object], tokenizer: TokenizerWrapper, taken: Collection[str]
) -> None:
    """Check the options that a session file brings.

    A chat template is a program. So a file may bring one only if it is the tokenizer's own.

    Args:
        path: The file, or a name for the place of the options, for messages.
        options: The options, by name.
        tokenizer: The tokenizer that the chat is loaded with.
        taken: Names that an option cannot have.

    Raises:
        ValueError: The file brings another chat template, or an option with such a name.
    """
    if clash := sorted(set(taken) & set(options)):
        raise ValueError(f"{path} was altered: its template options name {', '.join(clash)}; use a copy of it")
    if has_other_template(options, tokenizer):
        raise ValueError(
            f"{path} brings a chat template that is not the tokenizer's; expected none: set tokenizer.chat_template "
            "to it if you trust it"
        )
