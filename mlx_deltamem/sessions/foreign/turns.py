"""The turns of a chat that another implementation saved."""

from collections.abc import Sequence
from dataclasses import replace

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.sessions.foreign.folder import ForeignSession
from mlx_deltamem.sessions.text.messages import parse_messages
from mlx_deltamem.sessions.text.token_ids import token_ids
from mlx_deltamem.sessions.turns.chat_text import ChatText
from mlx_deltamem.sessions.turns.turn import Turn


def foreign_turns(foreign: ForeignSession, text: ChatText, tokenizer: TokenizerWrapper) -> list[Turn]:
    """Convert the messages of a foreign chat to turns. They have no places to go back to.

    The replies get the tokens that were saved with the chat, if these agree with the chat template; else the tokens
    that the tokenizer gives.

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
        found = find_replies(foreign.ids, [turn.opening.ids for turn in turns], [turn.ending.ids for turn in turns])
    if found is None:
        found = [token_ids(tokenizer, turn.reply) for turn in turns]
    return [replace(turn, reply_ids=tuple(ids)) for turn, ids in zip(turns, found, strict=True)]


def find_replies(
    ids: Sequence[int], openings: Sequence[Sequence[int]], endings: Sequence[Sequence[int]]
) -> list[list[int]] | None:
    """Find the tokens of the replies in the tokens of a whole chat, by the tokens around them.

    Args:
        ids: The tokens of the chat.
        openings: By turn, the tokens of the messages, up to where the reply begins.
        endings: By turn, the tokens that the template writes after the reply.

    Returns:
        The tokens of each reply; None if the chat does not have these openings and endings.
    """
    ids, replies, begin = list(ids), [], 0
    for index, opening in enumerate(openings):
        if ids[begin : begin + len(opening)] != list(opening):
            return None
        begin += len(opening)
        is_last = index + 1 == len(openings)
        following = [*endings[index], *(() if is_last else openings[index + 1])]
        # A reply may contain what follows it. The last reply is as long as possible, the others as short as possible.
        first = max(begin, len(ids) - len(following)) if is_last else begin
        ends = range(first, len(ids) - len(following) + 1)
        end = next((end for end in ends if ids[end : end + len(following)] == following), None)
        if end is None:
            return None
        replies.append(ids[begin:end])
        begin = end + len(endings[index])
    return replies if begin == len(ids) else None
