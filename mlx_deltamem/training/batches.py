"""Batches of episodes: arrays of one shape, filled up where need be."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_deltamem.core.config import DeltaMemConfig
from mlx_deltamem.core.spans import unit_shares
from mlx_deltamem.training.episode import Episode, Question
from mlx_deltamem.training.records import ANSWER, FROZEN
from mlx_deltamem.training.told import Written

# Lengths are rounded up to one of this many steps per octave, so that few shapes are ever compiled.
_STEPS_PER_OCTAVE = 4
_LEAST_STEP, _LEAST_STEP_OF_TOKENS, _LEAST_STEP_OF_ROWS = 8, 16, 4


class Asked(NamedTuple):
    """The texts of N questions, with T tokens at most, A of them of the answer.

    Attributes:
        ids: `[N, T]` int32, padded at the right.
        mask: `[N, T]` bool, False for padding, and for a whole text that fills up a batch.
        positions: `[N, A]` int32, where the logits of each answer token are.
        targets: `[N, A]` int32, the answer tokens.
        weights: `[N, A]` float32, of the answer tokens in the loss; 0 for padding, for a text that fills up, and where
            the target is what the frozen model would say.
        values: `[N, A]` bool, the tokens of the value.
        written: `[N, T]` bool, the tokens that are written where any are; None: all.
        alone: `[N]` bool, the questions that are learned from their answer alone; None: none.
        kinds: `[N]` int32, the number of each question's kind, 0 where it has none that counts; None: all 0.
    """

    ids: mx.array
    mask: mx.array
    positions: mx.array
    targets: mx.array
    weights: mx.array
    values: mx.array
    written: mx.array | None = None
    alone: mx.array | None = None
    kinds: mx.array | None = None

    def of_rows(self, rows: mx.array) -> "Asked":
        """Some of the questions, `[F]` int32, in that order."""
        return Asked(*(None if array is None else array[rows] for array in self))


class Frozen(NamedTuple):
    """Of N questions, F whose target is what the frozen model would say after the same text.

    Attributes:
        rows: `[F]` int32, their places.
        weights: `[F, A]` float32, of the answer tokens in the loss; 0 for padding, and for a question that fills up.
    """

    rows: mx.array
    weights: mx.array


class Pass(NamedTuple):
    """What is read of B histories in one pass; each pass over them is as wide as its longest text needs.

    Attributes:
        ids: `[B, W]` int32, padded at the right; W is 0 where no episode has a history.
        lengths: `[B]` int32, the tokens of each row.
        written: `[B, W]` bool, the tokens that are written; None: all.
    """

    ids: mx.array
    lengths: mx.array
    written: mx.array | None

    @property
    def mask(self) -> mx.array:
        """`[B, W]` bool, False for padding."""
        return mx.arange(self.ids.shape[1]) < self.lengths[:, None]

    @property
    def written_mask(self) -> mx.array:
        """`[B, W]` bool, True for what is written: False for padding, too."""
        return self.mask if self.written is None else self.mask & self.written


class Batch(NamedTuple):
    """B episodes with their N questions, which are filled up with copies that do not count.

    Attributes:
        history: The passes over the histories, one after the other; at least one.
        shares: `[B, U, W]` float32, the share of each token of the one pass in its unit (a message or a sentence), for
            adapters that write means, which know from it what is written; else None. Units that fill up have no tokens.
        rows: `[N]` int32, the episode of each question, or of the copy that fills up.
        writes: Whether the questions are written into the memory as they are read; all of a batch are, or none.
        asked: The questions.
        context: The same questions with the whole chat as text, for a teacher; else None.
        frozen: Those whose target is the frozen model; None where there are none.
    """

    history: tuple[Pass, ...]
    shares: mx.array | None
    rows: mx.array
    writes: bool
    asked: Asked
    context: Asked | None
    frozen: Frozen | None

    @property
    def count(self) -> int:
        """B."""
        return self.history[0].lengths.shape[0]

    @property
    def told(self) -> bool:
        """Whether any episode has a history."""
        return self.history[0].ids.size > 0

    @property
    def history_tokens(self) -> int:
        """The tokens of all histories, without padding."""
        return sum(each.lengths.sum().item() for each in self.history)

    @classmethod
    def of(cls, *values: mx.array | bool | tuple | None) -> "Batch":
        """A batch from its fields, where a function transformation has made named tuples plain ones."""
        history, *fields, asked, context, frozen = values
        more = None if context is None else Asked(*context), None if frozen is None else Frozen(*frozen)
        return cls(tuple(Pass(*each) for each in history), *fields, Asked(*asked), *more)


class BatchMaker:
    """Turns episodes into batches for an adapter.

    Args:
        config: The adapter's configuration.
        value_weight: The weight of a value's tokens in the loss; other tokens of an answer have 1.
        kinds: The kinds of questions that count, which are numbered from 1 on.
    """

    def __init__(self, config: DeltaMemConfig, value_weight: float = 1.0, kinds: Sequence[str] = ()):
        self._granularity = config.memory_write_granularity
        self._value_weight = value_weight
        self._kinds = {kind: number for number, kind in enumerate(kinds, 1)}

    def batch(self, episodes: Sequence[Episode]) -> Batch:
        """A batch of episodes, at least one; all with a context for the teacher or none, and all of which the questions
        are written, or none."""
        history = _histories(episodes)
        slots = [(row, index) for row, each in enumerate(episodes) for index in range(len(each.questions))]
        counted = len(slots)
        most = len(episodes) * max(len(each.questions) for each in episodes)
        slots += slots[:1] * (min(_rounded(counted, _LEAST_STEP_OF_ROWS), most) - counted)
        asked = [(episodes[row].questions[index], at < counted) for at, (row, index) in enumerate(slots)]
        context = None
        if episodes[0].context:
            context = [(episodes[row].context[index], at < counted) for at, (row, index) in enumerate(slots)]
        return Batch(
            history,
            self._shares(episodes, history[0].ids.shape[1]),
            mx.array([row for row, _ in slots], mx.int32),
            episodes[0].writes_questions,
            self._asked(asked),
            None if context is None else self._asked(context),
            _frozen(asked),
        )

    def _shares(self, episodes: Sequence[Episode], width: int) -> mx.array | None:
        if self._granularity == "token" or not width:
            return None
        ids = np.full((len(episodes), width), -1)
        for row, episode in enumerate(episodes):
            history = episode.history
            units = history.message_ids if self._granularity == "message_mean" else history.sentence_ids
            ids[row, : len(units)] = np.where(episode.written, units, -1)
        shares = unit_shares(ids)
        if shares is None:  # sentences that the tokenizer does not tell apart from what is around them
            return mx.zeros((len(episodes), 1, width))
        return mx.array(np.pad(shares, [(0, 0), (0, _rounded(shares.shape[1]) - shares.shape[1]), (0, 0)]))

    def _asked(self, questions: Sequence[tuple[Question, bool]]) -> Asked:
        ids, lengths = _padded([question.ids for question, _ in questions])
        answers = [len(question.ids) - question.answer for question, _ in questions]
        lengths = np.where([counted for _, counted in questions], lengths, 0)
        shape = len(questions), _rounded(max(answers))
        positions, targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        weights, values = np.zeros(shape, np.float32), np.zeros(shape, bool)
        for row, ((question, counted), answer) in enumerate(zip(questions, answers, strict=True)):
            begin, end = question.value[0] - question.answer, question.value[1] - question.answer
            positions[row, :answer] = np.arange(question.answer - 1, len(question.ids) - 1)
            targets[row, :answer] = question.ids[question.answer :]
            if counted and question.target != FROZEN:
                weights[row, :answer] = question.weight
                weights[row, begin:end] = self._value_weight * question.weight
                values[row, begin:end] = True
        mask = np.arange(ids.shape[1]) < lengths[:, None]
        written = _flags([question.written for question, _ in questions], ids.shape[1])
        alone = [question.target == ANSWER for question, _ in questions]
        arrays = map(mx.array, (ids, mask, positions, targets, weights, values))
        kinds = [self._kinds.get(question.kind, 0) for question, _ in questions]
        return Asked(
            *arrays,
            written,
            mx.array(alone) if any(alone) else None,
            mx.array(kinds, mx.int32) if self._kinds else None,
        )


def _histories(episodes: Sequence[Episode]) -> tuple[Pass, ...]:
    """The passes over the histories of some episodes. A row with fewer of them waits for the others."""
    passes = zip_longest(*(episode.passes for episode in episodes), fillvalue=([], True))
    return tuple(_pass(rows) for rows in passes)


def _pass(rows: Sequence[tuple[Sequence[int], Written]]) -> Pass:
    ids, lengths = _padded([ids for ids, _ in rows])
    return Pass(mx.array(ids), mx.array(lengths), _flags([flags for _, flags in rows], ids.shape[1]))


def _frozen(questions: Sequence[tuple[Question, bool]]) -> Frozen | None:
    """Those of N questions whose target is the frozen model."""
    rows = [row for row, (question, counted) in enumerate(questions) if counted and question.target == FROZEN]
    if not rows:
        return None
    answers = [len(question.ids) - question.answer for question, _ in questions]
    count = _rounded(len(rows), _LEAST_STEP_OF_ROWS)
    weights = np.zeros((count, _rounded(max(answers))), np.float32)
    for place, row in enumerate(rows):
        weights[place, : answers[row]] = questions[row][0].weight
    return Frozen(mx.array(rows + rows[:1] * (count - len(rows)), mx.int32), mx.array(weights))


def _padded(sequences: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Sequences padded at the right, `[sequences, length]` int32, and their lengths, int32."""
    lengths = np.array([len(sequence) for sequence in sequences], np.int32)
    padded = np.zeros((len(sequences), _rounded(int(lengths.max()), _LEAST_STEP_OF_TOKENS)), np.int32)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = sequence
    return padded, lengths


def _flags(written: Sequence[Written], width: int) -> mx.array | None:
    """`[rows, width]` bool, the tokens that are written; None where that is so for all tokens, or for none."""
    if all(isinstance(each, bool) for each in written) and len(set(written)) == 1:
        return None
    flags = np.zeros((len(written), width), bool)
    for row, each in enumerate(written):
        flags[row, : width if isinstance(each, bool) else len(each)] = each
    return mx.array(flags)


def _rounded(length: int, least_step: int = _LEAST_STEP) -> int:
    """The length rounded up: by a quarter at most, or to a multiple of `least_step`."""
    if length == 0:
        return 0
    step = max(least_step, 2 ** (length - 1).bit_length() // (2 * _STEPS_PER_OCTAVE))
    return -(-length // step) * step
