"""Synthetic episodes that test what a memory can recall: facts told in a chat, and questions about them.

Needs no download. The same settings, seed and index give the same episode on every machine.
"""

from .episode import Episode, Kind, Message, Question, Record
from .generate import make_episode
from .invented import words_of
from .settings import EpisodeSettings, Range
from .split import SIDES, Side, Split

__all__ = [
    "SIDES",
    "Episode",
    "EpisodeSettings",
    "Kind",
    "Message",
    "Question",
    "Range",
    "Record",
    "Side",
    "Split",
    "make_episode",
    "words_of",
]
