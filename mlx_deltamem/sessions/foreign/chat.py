"""The turns of a chat that another implementation saved."""

from dataclasses import replace

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.sessions.foreign.folder import ForeignSession
from mlx_deltamem.sessions.messages import parse_messages
from mlx_deltamem.sessions.reply_tokens import reply_tokens
from mlx_deltamem.sessions.text import ChatText
from mlx_deltamem.sessions.turn import Turn


def foreign_turns(foreign: ForeignSession, text: ChatText, tokenizer: TokenizerWrapper) -> list[Turn]:
    """The turns of a foreign chat, without borders: it kept none.

    Replies have the tokens that the chat has for them where these agree with the chat template, else those that the
    tokenizer gives.

    Raises:
        ValueError: The chat template refuses the messages.
    """
    turns: list[Turn] = []
    for user, reply in zip(foreign.messages[::2], foreign.messages[1::2], strict=True):
        messages, said = parse_messages([user]), reply["content"]
        opening, ending = text.opening(turns, messages), text.ending(turns, messages, said)
        turns.append(Turn(messages, opening, reply=said, ending=ending))
    found = None
    if foreign.ids is not None:
        found = reply_tokens(foreign.ids, [turn.opening.ids for turn in turns], [turn.ending.ids for turn in turns])
    if found is None:
        found = [tokenizer.encode(turn.reply, add_special_tokens=False) for turn in turns]
    return [replace(turn, reply_ids=tuple(ids)) for turn, ids in zip(turns, found, strict=True)]
