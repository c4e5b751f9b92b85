"""The facts of the demo: each is told in a chat, its text is dropped, and it is asked for three times."""

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper
from rich.table import Table

from mlx_deltamem.sessions.comparison import WITH, WITHOUT, compare
from mlx_deltamem.sessions.session import ChatSession
from mlx_deltamem.show.tables import PlainTable

FULL_TEXT = "frozen model, text in view"
COLUMNS = (WITH, WITHOUT, FULL_TEXT)
REPLY_TOKENS = 24
# Characters. The replies without the memory are long and have long words.
_NARROW, _WIDE = 14, 17


@dataclass(frozen=True)
class Fact:
    """A fact that is told, the question for it, and a word that a right reply names."""

    told: str
    question: str
    value: str


# These eight were written once, before the adapter was tried with them. None was taken out or changed after it.
# Of their values, its training had Waffles, Lisbon, a barber, a baker and walnuts, in other sentences.
FACTS = (
    Fact("We finally got a dog last week, and the kids named him Waffles.", "What's our dog called?", "Waffles"),
    Fact("My sister is flying in from Lisbon on Saturday.", "Where is my sister flying in from?", "Lisbon"),
    Fact("The plumber said he'd come round at 7:45 on Monday.", "What time is the plumber coming?", "7:45"),
    Fact("Before I forget: the code for the gate is 5083.", "What's the code for the gate?", "5083"),
    Fact("I left my umbrella at the barber's again.", "Where did I leave my umbrella?", "barber"),
    Fact("I quit the office, I work as a baker now.", "What do I do for a living?", "baker"),
    Fact("My daughter is allergic to walnuts, so no cake for her.", "What is my daughter allergic to?", "walnut"),
    Fact("I borrowed 40 euros from my neighbour Henrike.", "Who did I borrow money from?", "Henrike"),
)


@dataclass(frozen=True)
class Told:
    """The replies to a fact.

    Attributes:
        fact: The fact.
        reply: The reply to the message that told it.
        replies: The replies to the question, by the heading of `COLUMNS`.
        memory: The memory after the fact was told, as in `ChatSession.memory`.
    """

    fact: Fact
    reply: str
    replies: dict[str, str]
    memory: dict[int, mx.array]

    def is_right(self, column: str) -> bool:
        """Whether the reply of a column names the value."""
        return self.fact.value.lower() in self.replies[column].lower()


def tell(model: nn.Module, tokenizer: TokenizerWrapper, fact: Fact) -> Told:
    """Tell a fact in a chat with history `none`, and ask for it: with the memory, without it, and with the text.

    Args:
        model: The model with its adapter.
        tokenizer: Its tokenizer.
        fact: The fact.
    """
    chat = ChatSession(model, tokenizer, history="none")
    reply = chat.send(fact.told, REPLY_TOKENS)
    memory = chat.memory
    replies = compare(chat, fact.question, max_tokens=REPLY_TOKENS)
    # The frozen model sees the text and has no memory.
    frozen = ChatSession(model, tokenizer, history="full", write="none")
    frozen.send(fact.told, REPLY_TOKENS)
    replies[FULL_TEXT] = frozen.send(fact.question, REPLY_TOKENS)
    return Told(fact, reply.strip(), {name: text.strip() for name, text in replies.items()}, memory)


def facts_table(all_told: list[Told]) -> Table:
    """A table with a row for each fact."""
    table = PlainTable(
        title="One chat each; the text of a turn is dropped when it ends", title_justify="left", show_lines=True
    )
    for heading in ("you", "the model", "you, next", *COLUMNS):
        table.add_column(heading, width=_WIDE if heading in (WITHOUT, FULL_TEXT) else _NARROW)
    for told in all_told:
        table.add_row(told.fact.told, told.reply, told.fact.question, *(told.replies[name] for name in COLUMNS))
    return table
