"""Synthetic episodes to train and test the recall of a memory: facts told in a chat, and questions about them.

They need no download. The same settings, seed and index give the same episode on every machine.
"""

from .episode import Episode, Kind, Question, Record
from .generate import make_episode
from .invented import words_of
from .settings import EpisodeSettings, Range
from .split import SIDES, Side, Split

__all__ = [
    "SIDES",
    "Episode",
    "EpisodeSettings",
    "Kind",
    "Question",
    "Range",
    "Record",
    "Side",
    "Split",
    "make_episode",
    "words_of",
]
