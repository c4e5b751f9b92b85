"""One reply to a chat, for the endpoints that give one: its request to the engine, and its parts."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing

from mlx_deltamem.files.jsonl import Json
from mlx_deltamem.serving.api.choice import Choice
from mlx_deltamem.serving.api.context import Context
from mlx_deltamem.serving.api.replies import Step, merged
from mlx_deltamem.serving.api.reply_text import Part, ReplyText
from mlx_deltamem.serving.api.selection import Selection, is_read_only, narrower
from mlx_deltamem.serving.exchange import Mode, ReplyRequest, Sampling
from mlx_deltamem.sessions.text.messages import Message


def single_request(
    context: Context,
    selection: Selection,
    messages: Sequence[Message],
    tools: tuple[Mapping[str, Json], ...] | None,
    options: Mapping[str, Json],
    sampling: Sampling,
) -> ReplyRequest:
    """The request to the engine. One of a program's tasks only reads the memory, and is not part of the chat."""
    reads = is_read_only(messages, context.settings.read_only_pattern)
    return ReplyRequest(
        messages=tuple(messages),
        memory=selection.memory,
        mode=narrower(selection.mode, Mode.READ) if reads else selection.mode,
        match=selection.match,
        # With the id, its message would count as an edit of the chat's first one.
        chat=None if reads else selection.chat,
        goes_on=not reads,
        tools=tools,
        template_options=options,
        sampling=sampling,
    )


def new_choice(context: Context, request: ReplyRequest, tools: tuple[Mapping[str, Json], ...] | None) -> Choice:
    """The reply to a request, before it begins."""
    return Choice(ReplyText(context.service.tokenizer, tools, request.template_options))


async def parts_of(reply: AsyncIterator[Step], choice: Choice) -> AsyncGenerator[Part, None]:
    """Yield the parts of a reply as they come. The reply is closed when this ends.

    Raises:
        RefusedError: The reply failed, or has no end.
    """
    async with aclosing(merged([reply])) as steps:
        async for _, step in steps:
            for part in choice.take(step):
                yield part
    # Raises if there is none.
    _ = choice.end
