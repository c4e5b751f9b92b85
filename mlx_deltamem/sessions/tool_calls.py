"""The tool calls in a reply, found by mlx-lm's parsers."""

import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.files.jsonl import Json
from mlx_deltamem.sessions.messages import ToolCall, json_text

Tools = Sequence[Mapping[str, Json]]


def find_tool_calls(
    tokenizer: TokenizerWrapper, reply: Sequence[int] | str, tools: Tools | None = None
) -> tuple[str, list[ToolCall]]:
    """Find the tool calls in a reply with mlx-lm's parser for the tokenizer.

    Args:
        tokenizer: mlx-lm's tokenizer.
        reply: The reply's tokens, or its text with special tokens: those mark the tool calls of some models.
        tools: The tools that the model was offered, in OpenAI's form: some parsers look up types of arguments.

    Returns:
        The reply's text without special tokens and without its calls, and the calls. A call that cannot be read stays
        in the text, and all do where mlx-lm has no parser. The id of a call is the one that the model wrote, or else
        random, as in mlx-lm: it is another one next time.
    """
    start, end, parser = tokenizer.tool_call_start, tokenizer.tool_call_end, tokenizer.tool_parser
    text = reply if isinstance(reply, str) else tokenizer.decode(reply, skip_special_tokens=False)
    outside, calls = [], []
    begin = place = 0
    while start and parser and (place := text.find(start, place)) >= 0:
        inside = place + len(start)
        # Without an end marker, as where generation was cut short, a call goes on to the end.
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
        return tokenizer.decode(reply, skip_special_tokens=True), []
    return _without_special_tokens(tokenizer, "".join(outside), reply), calls


def _parsed_calls(parser: Callable[[str, Tools | None], object], text: str, tools: Tools | None) -> list[ToolCall]:
    """The calls in what stands between the markers; none if it cannot be read."""
    try:
        parsed = parser(text, tools)
        return [_formatted(call) for call in (parsed if isinstance(parsed, list) else [parsed])]
    # Whatever comes out of a parser (KeyError, SyntaxError, ...) or is wrong with what it gives: the model wrote it.
    except Exception:
        return []


def _formatted(call: Mapping[str, object]) -> ToolCall:
    """A call that mlx-lm parsed, in OpenAI's form. Raises: an exception if it is none."""
    name, arguments, written_id = call["name"], call["arguments"], call.get("id")
    if isinstance(arguments, str):  # The model wrote JSON text where the object itself was to be.
        arguments = json.loads(arguments)
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise ValueError("no name or no arguments")
    # Nine letters and digits: the templates of Mistral's models refuse other ids.
    call_id = written_id if isinstance(written_id, str) and written_id else uuid.uuid4().hex[:9]
    json_text([name, call_id])
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": json_text(arguments)}}


def _without_special_tokens(tokenizer: TokenizerWrapper, text: str, reply: Sequence[int] | str) -> str:
    ids = tokenizer.encode(reply, add_special_tokens=False) if isinstance(reply, str) else reply
    # Tokenizers list their special tokens each in its own way: what counts is what decoding leaves out.
    skipped = [token for token in set(ids) if not tokenizer.decode([token], skip_special_tokens=True)]
    special = filter(None, (tokenizer.decode([token], skip_special_tokens=False) for token in skipped))
    pattern = "|".join(map(re.escape, special))
    return re.sub(pattern, "", text) if pattern else text
