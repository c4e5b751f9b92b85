"""Find the tool calls in a reply, with mlx-lm's parsers."""

import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.sessions.template.options import Tools
from mlx_deltamem.sessions.text.json_text import AROUND_ARGUMENTS, json_text
from mlx_deltamem.sessions.text.messages import ToolCall
from mlx_deltamem.sessions.text.token_ids import token_ids

# One of mlx-lm's parsers: it gets the text between the markers, and the tools that the model was offered.
_Parser = Callable[[str, Tools | None], object]


def find_tool_calls(
    tokenizer: TokenizerWrapper, reply: Sequence[int] | str, tools: Tools | None = None
) -> tuple[str, list[ToolCall]]:
    """Find the tool calls in a reply, with the parser that mlx-lm has for the tokenizer.

    Args:
        tokenizer: mlx-lm's tokenizer.
        reply: The tokens of the reply, or its text with special tokens. Some models mark tool calls by special tokens.
        tools: The tools that the model was offered, in OpenAI's form. Some parsers look up the types of arguments.

    Returns:
        The text of the reply without special tokens and without its calls, and the calls. A call that the parser
        cannot read stays in the text. If mlx-lm has no parser for the tokenizer, all calls stay in the text. The id of
        a call is the one that the model wrote; if it wrote none, the id is random, as in mlx-lm.
    """
    start, end = tokenizer.tool_call_start, tokenizer.tool_call_end
    parser: _Parser | None = tokenizer.tool_parser
    text: str = reply if isinstance(reply, str) else tokenizer.decode(reply, skip_special_tokens=False)
    outside: list[str] = []
    calls: list[ToolCall] = []
    begin = place = 0
    while start and parser and (place := text.find(start, place)) >= 0:
        inside = place + len(start)
        # A call without an end marker goes on to the end of the text: generation was cut short.
        close = text.find(end, inside) if end else -1
        found = _parsed_calls(parser, text[inside:close] if close >= 0 else text[inside:], tools)
        if found:
            outside.append(text[begin:place])
            begin = place = close + len(end) if close >= 0 else len(text)
            calls += found
        else:
            place = inside
    outside.append(text[begin:])
    if not calls and not isinstance(reply, str):
        plain: str = tokenizer.decode(reply, skip_special_tokens=True)
        return plain, []
    return _without_special_tokens(tokenizer, "".join(outside), reply), calls


def _parsed_calls(parser: _Parser, text: str, tools: Tools | None) -> list[ToolCall]:
    """The calls in the text between two markers. The list is empty if the parser cannot read the text."""
    try:
        parsed = parser(text, tools)
        return [_formatted(call) for call in (parsed if isinstance(parsed, list) else [parsed])]
    # The model wrote the text: any exception may come out of the parser, and its result may have any form.
    except Exception:
        return []


def _formatted(call: object) -> ToolCall:
    """Convert a call that mlx-lm parsed to OpenAI's form.

    Raises:
        ValueError, KeyError, TypeError: It is not a call.
    """
    if not isinstance(call, Mapping):
        raise ValueError("it is not a call")
    name, arguments, written_id = call["name"], call["arguments"], call.get("id")
    if isinstance(arguments, str):  # The model wrote JSON text in place of the object.
        arguments = json.loads(arguments)
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise ValueError("it has no name or no arguments")
    # Nine letters and digits: the templates of Mistral's models refuse other ids.
    call_id = written_id if isinstance(written_id, str) and written_id else uuid.uuid4().hex[:9]
    json_text([name, call_id])
    # Other clients send the call back as a message, which keeps no deeper arguments.
    text = json_text(arguments, AROUND_ARGUMENTS)
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": text}}


def _without_special_tokens(tokenizer: TokenizerWrapper, text: str, reply: Sequence[int] | str) -> str:
    ids = token_ids(tokenizer, reply) if isinstance(reply, str) else reply
    # Each tokenizer lists its special tokens in another way. So the ones are taken that decoding leaves out.
    skipped = [token for token in set(ids) if not tokenizer.decode([token], skip_special_tokens=True)]
    special = filter(None, (tokenizer.decode([token], skip_special_tokens=False) for token in skipped))
    pattern = "|".join(map(re.escape, special))
    return re.sub(pattern, "", text) if pattern else text
