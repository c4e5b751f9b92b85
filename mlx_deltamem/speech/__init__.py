"""Synthetic conversations that sound like people, with questions: data for a memory that must follow free speech.

A fact belongs to a relation of `relations/` (who has my ladder, what my aunt is allergic to, where the car is parked
...) or to a scene of `scenes/`, a short story of several facts. Both have many wordings to tell it and to ask for it,
written by hand. `kinds/` has the patterns of values: names, codes, times, prices, places, titles. `make_conversation`
makes a conversation of facts, with small talk around them and ordinary turns between them. It needs no model, and no
other package except for names from libraries.

Wordings, values, and relations or scenes are held out separately, each by a hash of its text (`Split`).
"""

from .conversation import Conversation, Kind, Question, Style, Turn
from .generate import make_conversation
from .ordinary import ordinary_message
from .questions import Encode
from .relations import Relation, relations
from .settings import Range, SpeechSettings
from .split import SIDES, Side, Split, side_of

__all__ = [
    "SIDES",
    "Conversation",
    "Encode",
    "Kind",
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
    "relations",
    "side_of",
]
