"""Conversations that sound like people, and questions about them: data for a memory that has to follow free speech.

The relations of `relations/` (who has my ladder, what my aunt is allergic to, where the car is parked ...) are each
told and asked for in many wordings that were written for them; `kinds.yaml` says how values are made: names, codes,
times, prices, places, titles. `make_conversation` puts them into a conversation, with small talk around them and
ordinary turns between them. It needs no model and, unless names from libraries are wanted, nothing but this package.

What is held out is decided by a hash of each wording, relation and value (`Split`), each on its own.
"""

from .conversation import Conversation, Kind, Message, Question, Style, Turn
from .generate import make_conversation
from .ordinary import ordinary_message, ordinary_messages
from .relations import Relation, relations
from .settings import Range, SpeechSettings
from .split import SIDES, Side, Split, side_of
from .talk import shared_questions

__all__ = [
    "SIDES",
    "Conversation",
    "Kind",
    "Message",
    "Question",
    "Range",
    "Relation",
    "Side",
    "SpeechSettings",
    "Split",
    "Style",
    "Turn",
    "make_conversation",
    "ordinary_message",
    "ordinary_messages",
    "relations",
    "shared_questions",
    "side_of",
]
