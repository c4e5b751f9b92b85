"""Conversations with all their replies."""

import random

from mlx_deltamem.data.live_replies import LiveReplies
from mlx_deltamem.data.replies import Replies
from mlx_deltamem.show.progress import Counted
from mlx_deltamem.speech import Conversation, Turn

_ACKNOWLEDGED = ("Got it.", "Noted.", "Okay.", "All right.", "Thanks, noted.", "Good to know.")


def reply_to_facts(turn: Turn, rng: random.Random, repeats: bool) -> str:
    """Make the reply to a turn that tells facts: an acknowledgement, and perhaps the facts.

    Args:
        turn: The turn.
        rng: Chooses the acknowledgement.
        repeats: Whether the facts follow it.
    """
    return " ".join((rng.choice(_ACKNOWLEDGED), *(turn.repeated if repeats else ())))


def with_replies(conversation: Conversation, replies: Replies, rng: random.Random, repeats: bool) -> Conversation:
    """Complete a conversation with new replies to the turns that tell something, and the frozen model's to others.

    Where the model was not asked, or said nothing, the reply is an acknowledgement.

    Args:
        conversation: The conversation.
        replies: The frozen model's replies.
        rng: Chooses acknowledgements.
        repeats: As in `reply_to_facts`.
    """
    given = []
    for turn in conversation.turns:
        if turn.tells:
            given.append(reply_to_facts(turn, rng, repeats))
        elif turn.assistant is None:
            reply, _ = replies.found.get(turn.user, ("", False))
            # Drawn always, so that the replies after it do not depend on where this one comes from.
            instead = rng.choice(_ACKNOWLEDGED)
            given.append(reply or instead)
        else:
            given.append(turn.assistant)
    return conversation.with_replies(given)


def with_live_replies(
    conversations: list[Conversation], chats: LiveReplies, rng: random.Random, progress: Counted
) -> list[Conversation]:
    """Give conversations the replies of an adapter, but where the assistant tells something, the replies stay."""
    asked = [
        each.with_replies(turn.assistant if turn.kind == "assistant" else None for turn in each.turns)
        for each in conversations
    ]
    return [
        each.with_replies(turn.assistant or rng.choice(_ACKNOWLEDGED) for turn in each.turns)
        for each in chats.complete(asked, progress)
    ]
