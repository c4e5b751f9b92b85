"""A chat as HTML, for notebooks: its messages, and its memory as heat maps."""

import base64
from collections.abc import Mapping, Sequence
from html import escape

import mlx.core as mx
import numpy as np

from mlx_deltamem.core.key_shift import square
from mlx_deltamem.sessions.export.heat_png import states_png
from mlx_deltamem.sessions.text.messages import Message

# A notebook is no place for thousands of messages.
_MOST_MESSAGES = 20
_STYLE = "white-space: pre-wrap; margin: .2em 0; overflow-wrap: anywhere; text-align: left"


def chat_html(
    title: str, facts: Mapping[str, object], messages: Sequence[Message], memory: Mapping[int, mx.array]
) -> str:
    """The HTML of a chat. It loads nothing, and nothing in a message is markup.

    Args:
        title: The title of the chat; may be empty.
        facts: Names and values of a line above the messages.
        messages: The messages; only the last ones are shown if there are many.
        memory: The states by layer, as `ChatSession.memory`.
    """
    shown = messages[-_MOST_MESSAGES:]
    before = len(messages) - len(shown)
    lines = [f"<p><i>{before:,} messages before these</i></p>"] if before else []
    lines += [
        f'<p style="{_STYLE}"><b>{escape(message["role"])}:</b> {escape(message["content"])}</p>' for message in shown
    ]
    states = [
        np.nan_to_num(np.asarray(head, np.float64), posinf=0.0, neginf=0.0)
        for state in memory.values()
        for head in np.array(square(state))[0]
    ]
    picture = base64.b64encode(states_png(states)).decode("ascii")
    size = sum(state.nbytes for state in memory.values())
    layers = f"layers {min(memory)} to {max(memory)}" if memory else "no layer"
    about = f"The memory, {size:,} bytes: a tile for each state of {layers}; blue is negative, red is positive"
    told = ", ".join(f"{name} {value}" for name, value in facts.items())
    return "\n".join(
        [
            "<div>",
            f"<p><b>{escape(title or 'Chat')}</b> ({escape(told)})</p>",
            *lines,
            f'<img alt="{escape(about)}" src="data:image/png;base64,{picture}"><p><small>{escape(about)}</small></p>',
            "</div>",
        ]
    )
