"""The replies of an adapter in live chats, for training records."""

from collections.abc import Sequence

from mlx_deltamem.adapters.loading import load
from mlx_deltamem.sessions.batch.batched_reply import NewReply
from mlx_deltamem.sessions.batch.reply_batch import ReplyBatch
from mlx_deltamem.sessions.replies.reply import ReplySettings
from mlx_deltamem.sessions.session import ChatSession
from mlx_deltamem.sessions.turns.history import NONE
from mlx_deltamem.sessions.turns.writing import ALL
from mlx_deltamem.show.progress import Counted
from mlx_deltamem.speech import Conversation

_AT_ONCE = 32


class LiveReplies:
    """Runs conversations as live chats: the model replies greedily, and the text of each turn is dropped.

    An adapter that is trained on right replies only does not know its own wrong ones, which a chat writes too.

    Args:
        model: The folder or Hub repo of the model.
        adapter: The folder or Hub repo of the adapter.
        longest: The most tokens of a reply.
    """

    def __init__(self, model: str, adapter: str, longest: int):
        self._model, self._tokenizer = load(model, adapter)
        self._settings = ReplySettings(longest)
        # One for all chats: it keeps the start of the text, which all of them read.
        self._batch = ReplyBatch(self._model, self._tokenizer, _AT_ONCE)

    def complete(self, conversations: Sequence[Conversation], progress: Counted) -> list[Conversation]:
        """Give each turn without a reply the reply of the model in that chat; "" if the model says nothing."""
        order = sorted(range(len(conversations)), key=lambda place: len(conversations[place].turns))
        completed: dict[int, Conversation] = {}
        for begin in range(0, len(order), _AT_ONCE):
            places = order[begin : begin + _AT_ONCE]
            completed |= zip(places, self._together([conversations[place] for place in places]), strict=True)
            progress("the adapter's replies", len(places))
        return [completed[place] for place in range(len(conversations))]

    def _together(self, conversations: Sequence[Conversation]) -> list[Conversation]:
        chats = [ChatSession(self._model, self._tokenizer, None, NONE, ALL) for _ in conversations]
        for number in range(max(len(each.turns) for each in conversations)):
            asked = []
            for chat, conversation in zip(chats, conversations, strict=True):
                if number >= len(conversation.turns):
                    continue
                turn = conversation.turns[number]
                if turn.assistant is None:
                    asked.append(NewReply(chat, chat.new_turn(turn.user), self._settings))
                else:
                    chat.read_exchange(turn.user, turn.assistant)
            for _, begun in self._batch.begin_all(asked):
                if isinstance(begun, Exception):
                    raise begun
            while len(self._batch):
                self._batch.step()
        return [
            conversation.with_replies(turn.reply for turn in chat.turns)
            for conversation, chat in zip(conversations, chats, strict=True)
        ]
