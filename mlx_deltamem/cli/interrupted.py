"""How far a command that was interrupted came, from the chat that it saved."""

from collections.abc import Sequence

from mlx_deltamem.sessions.session import ChatSession
from mlx_deltamem.sessions.text.messages import said_messages
from mlx_deltamem.sessions.turns.turn import Turn


def steps_done(chat: ChatSession, texts: Sequence[Turn], prompts: Sequence[str], write: str) -> int:
    """Count the first steps of a command that were done: the chat ends with their turns.

    The steps are the texts to remember, and then the prompts. The last turn may be the beginning of a text that was
    interrupted; that step is not done, and `ChatSession.remember` goes on there. Turns before other turns do not count:
    their texts are wanted again. A command without texts has no steps that can be told from those of another command.

    Args:
        chat: The chat.
        texts: The texts, each as the turn that it would become.
        prompts: The prompts.
        write: What the turns of the prompts write into the memory.

    Returns:
        The number; 0 if all steps are there, because the command was not interrupted then.
    """
    total = len(texts) + len(prompts)
    if not texts or chat.state.memory_set:
        return 0
    for count in range(min(total, len(chat.turns)), 0, -1):
        turns, wanted = chat.turns[-count:], texts[:count]
        whole = [_tokens_left(turn, text) == 0 for turn, text in zip(turns, wanted, strict=False)]
        whole += [
            _is_answer(turn, prompt, chat.conversation, write)
            for turn, prompt in zip(turns[len(wanted) :], prompts, strict=False)
        ]
        if all(whole):
            return count if count < total else 0
        if count <= len(texts) and all(whole[:-1]) and _tokens_left(turns[-1], wanted[-1]) is not None:
            return count - 1
    return 0


def _tokens_left(turn: Turn, text: Turn) -> int | None:
    """The number of tokens of a text that a turn lacks; None if the turn is another text, or a turn with a reply."""
    same = (turn.messages, turn.write, turn.conversation) == (text.messages, text.write, text.conversation)
    read = turn.opening.ids
    if not (turn.remembered and same and read == text.opening.ids[: len(read)]):
        return None
    return len(text.opening.ids) - len(read)


def _is_answer(turn: Turn, prompt: str, conversation: str, write: str) -> bool:
    asked = said_messages(prompt), write, conversation
    return not turn.remembered and (turn.messages, turn.write, turn.conversation) == asked
