"""Makes batches of episodes, and feeds them to mlx-lm's trainer."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice, zip_longest

import mlx.core as mx
import numpy as np

from mlx_deltamem.core.config import DeltaMemConfig
from mlx_deltamem.core.spans import unit_shares
from mlx_deltamem.training import processes
from mlx_deltamem.training.batch import Asked, Batch, Frozen, Pass
from mlx_deltamem.training.episode import Episode, Question
from mlx_deltamem.training.grouping import rows_of_passes
from mlx_deltamem.training.order import BatchOrder
from mlx_deltamem.training.records import ANSWER, FROZEN
from mlx_deltamem.training.settings import Schedule
from mlx_deltamem.training.written import Written

# Lengths are rounded up to one of a few sizes per octave, so that MLX compiles few shapes.
_SIZES_PER_OCTAVE = 4
_LEAST_STEP, _LEAST_STEP_OF_TOKENS, _LEAST_STEP_OF_ROWS = 8, 16, 4


class BatchMaker:
    """Makes batches for an adapter.

    Args:
        config: The adapter's configuration.
        value_weight: The loss weight of the tokens of a value and of the next one. Other answer tokens have weight 1.
        kinds: The kinds of questions that are counted separately. They are numbered from 1.
        compiled: Whether the step is compiled. If it is not, nothing is gained by few shapes, and there is little
            padding: lengths are not rounded up, and histories of other lengths are read in a pass of their own.
    """

    def __init__(
        self, config: DeltaMemConfig, value_weight: float = 1.0, kinds: Sequence[str] = (), compiled: bool = True
    ):
        self._granularity = config.memory_write_granularity
        self._value_weight = value_weight
        self._kinds = {kind: number for number, kind in enumerate(kinds, 1)}
        self._rounded = _rounded if compiled else _exact
        # The units of means belong to a pass over all histories.
        self._parts = not compiled and self._granularity == "token"

    def batch(self, episodes: Sequence[Episode]) -> Batch:
        """Make a batch of one or more episodes.

        Either all episodes or none must have a context for the teacher, and likewise questions that are written.
        """
        history = tuple(
            self._pass(rows, some)
            for rows in zip_longest(*(each.passes for each in episodes), fillvalue=([], True))
            for some in (rows_of_passes([len(ids) for ids, _ in rows]) if self._parts else [None])
        )
        places = [(row, index) for row, each in enumerate(episodes) for index in range(len(each.questions))]
        counted = len(places)
        most = len(episodes) * max(len(each.questions) for each in episodes)
        # Copies of the first question fill the batch up.
        places += places[:1] * (min(self._rounded(counted, _LEAST_STEP_OF_ROWS), most) - counted)
        asked = [(episodes[row].questions[index], at < counted) for at, (row, index) in enumerate(places)]
        context = None
        if episodes[0].context:
            context = [(episodes[row].context[index], at < counted) for at, (row, index) in enumerate(places)]
        return Batch(
            history,
            self._shares(episodes, history[0].ids.shape[1]),
            mx.array([row for row, _ in places], mx.int32),
            episodes[0].writes_questions,
            self._asked(asked),
            None if context is None else self._asked(context),
            self._frozen(asked),
            len(episodes),
            mx.array(sum(self._token_weights(each).sum() for each, is_counted in asked if is_counted), mx.float32),
        )

    def _pass(self, texts: Sequence[tuple[Sequence[int], Written]], some: list[int] | None) -> Pass:
        rows = texts if some is None else [texts[row] for row in some]
        ids, lengths = self._padded([ids for ids, _ in rows])
        written = _flags([flags for _, flags in rows], ids.shape[1])
        return Pass(mx.array(ids), mx.array(lengths), written, None if some is None else mx.array(some, mx.int32))

    def _shares(self, episodes: Sequence[Episode], width: int) -> mx.array | None:
        if self._granularity == "token" or not width:
            return None
        ids = np.full((len(episodes), width), -1)
        for row, episode in enumerate(episodes):
            history = episode.history
            units = history.message_ids if self._granularity == "message_mean" else history.sentence_ids
            ids[row, : len(units)] = np.where(episode.written, units, -1)
        shares = unit_shares(ids)
        if shares is None:  # The tokenizer separates no sentence from the text around it.
            return mx.zeros((len(episodes), 1, width))
        return mx.array(np.pad(shares, [(0, 0), (0, self._rounded(shares.shape[1]) - shares.shape[1]), (0, 0)]))

    def _asked(self, questions: Sequence[tuple[Question, bool]]) -> Asked:
        """The arrays of questions, each with whether it counts."""
        ids, lengths = self._padded([question.ids for question, _ in questions])
        answers = [len(question.ids) - question.answer for question, _ in questions]
        lengths = np.where([counted for _, counted in questions], lengths, 0)
        shape = len(questions), self._rounded(max(answers))
        positions, targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        weights, values = np.zeros(shape, np.float32), np.zeros(shape, bool)
        for row, ((question, counted), answer) in enumerate(zip(questions, answers, strict=True)):
            begin, end = question.value[0] - question.answer, question.value[1] - question.answer
            positions[row, :answer] = np.arange(question.answer - 1, len(question.ids) - 1)
            targets[row, :answer] = question.ids[question.answer :]
            if counted and question.target != FROZEN:
                weights[row, :answer] = question.weight * self._token_weights(question)
                values[row, begin:end] = True
        alone = [question.target == ANSWER for question, _ in questions]
        kinds = [self._kinds.get(question.kind, 0) for question, _ in questions]
        return Asked(
            mx.array(ids),
            mx.array(np.arange(ids.shape[1]) < lengths[:, None]),
            mx.array(positions),
            mx.array(targets),
            mx.array(weights),
            mx.array(values),
            _flags([question.written for question, _ in questions], ids.shape[1]),
            mx.array(alone) if any(alone) else None,
            mx.array(kinds, mx.int32) if self._kinds else None,
        )

    def _token_weights(self, question: Question) -> np.ndarray:
        """The weights of a question's answer tokens, `[A]` float64, without the weight of its record."""
        weights = np.ones(len(question.ids) - question.answer)
        begin, end = question.value
        if end > begin and question.target != FROZEN:
            # With the token after the value, which says that the value ends there.
            weights[begin - question.answer : end + 1 - question.answer] = self._value_weight
        return weights

    def _frozen(self, questions: Sequence[tuple[Question, bool]]) -> Frozen | None:
        rows = [row for row, (question, counted) in enumerate(questions) if counted and question.target == FROZEN]
        if not rows:
            return None
        answers = [len(question.ids) - question.answer for question, _ in questions]
        count = self._rounded(len(rows), _LEAST_STEP_OF_ROWS)
        weights = np.zeros((count, self._rounded(max(answers))), np.float32)
        for place, row in enumerate(rows):
            weights[place, : answers[row]] = questions[row][0].weight
        return Frozen(mx.array(rows + rows[:1] * (count - len(rows)), mx.int32), mx.array(weights))

    def _padded(self, sequences: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Pad sequences at the right: `[sequences, length]` int32. Also return their lengths, int32."""
        lengths = np.array([len(sequence) for sequence in sequences], np.int32)
        padded = np.zeros((len(sequences), self._rounded(int(lengths.max()), _LEAST_STEP_OF_TOKENS)), np.int32)
        for row, sequence in enumerate(sequences):
            padded[row, : len(sequence)] = sequence
        return padded, lengths


def _flags(written: Sequence[Written], width: int) -> mx.array | None:
    """`[rows, width]` bool, True for tokens to write; None if all rows write everything, or all write nothing."""
    if all(isinstance(each, bool) for each in written) and len({each is True for each in written}) == 1:
        return None
    flags = np.zeros((len(written), width), bool)
    for row, each in enumerate(written):
        flags[row, : width if isinstance(each, bool) else len(each)] = each
    return mx.array(flags)


def _rounded(length: int, least_step: int = _LEAST_STEP) -> int:
    """Round a length up: by a quarter at most, or to a multiple of `least_step`."""
    if length == 0:
        return 0
    step = max(least_step, 2 ** (length - 1).bit_length() // (2 * _SIZES_PER_OCTAVE))
    return -(-length // step) * step


def _exact(length: int, least_step: int = _LEAST_STEP) -> int:
    """A length as it is, in the place of `_rounded`."""
    return length


class Feed:
    """Gives batches to mlx-lm's trainer, as its `iterate_batches`, for training data and held-out data.

    When the trainer asks for a batch, the step before it is complete.

    Args:
        maker: Makes the batches.
        seed: The seed of the order of the training data.
        first: The number of the first training batch.
        held_out: The number of held-out batches, -1 for all. If a batch is too short for all processes, those without a
            share take part in the communication between batches only.
        between: Called before each batch with the number of training batches that are done.

    Attributes:
        tokens: The number of tokens in this process's share of the training batches so far.
    """

    def __init__(self, maker: BatchMaker, seed: int, first: int, held_out: int, between: Callable[[int], None]):
        self._maker = maker
        self._seed = seed
        self._first = first
        self._held_out = None if held_out < 0 else held_out
        self._between = between
        self._done = first
        self.tokens = 0

    def __call__(
        self,
        dataset: Sequence[Episode],
        batch_size: int,
        max_seq_length: int,
        loop: bool = False,
        comm_group: mx.distributed.Group | None = None,
    ) -> Iterator[Batch]:
        """Yield batches, each with this process's share of its rows.

        Args:
            dataset: The training episodes, or held-out ones.
            batch_size: The number of episodes in a batch, over all processes.
            max_seq_length: An argument of mlx-lm's. It has no effect: episodes have their final length.
            loop: Whether these are the training episodes, which repeat without an end.
            comm_group: The processes.
        """
        rank, size = (comm_group.rank(), comm_group.size()) if comm_group else (0, 1)
        order = BatchOrder(dataset, batch_size, self._seed if loop else None)
        batches = order.indices(self._first) if loop else islice(order.indices(), self._held_out)
        for indices in batches:
            self._between(self._done)
            if mine := indices[rank::size]:
                batch = self._maker.batch([dataset[index] for index in mine])
                self.tokens += loop * (batch.history_tokens + int(batch.asked.mask.sum()))
                yield batch
            self._done += loop


def check_data(
    episodes: Sequence[Episode], held_out: Sequence[Episode], schedule: Schedule, config: DeltaMemConfig
) -> None:
    """Check that batches can be made of episodes, and that the adapter can write them.

    Raises:
        ValueError: There are too few episodes, or the processes cannot share a batch evenly, or an adapter that writes
            means would have to write questions or single turns.
    """
    if schedule.batch_size % processes.count():
        raise ValueError(
            f"--batch-size is {schedule.batch_size}; expected a multiple of the {processes.count()} processes"
        )
    BatchOrder(episodes, schedule.batch_size, schedule.seed)
    check_writes((*episodes, *held_out), config)


def check_writes(episodes: Sequence[Episode], config: DeltaMemConfig) -> None:
    """Check that the adapter can write episodes.

    Raises:
        ValueError: An adapter that writes means would have to write questions or single turns.
    """
    granularity = config.memory_write_granularity
    if granularity == "token":
        return
    if any(episode.writes_questions for episode in episodes):
        raise ValueError(
            f"the adapter writes by {granularity}, and only an adapter that writes by token can write questions as "
            "they are read; expected --write after or none, and no other write in records"
        )
    if any(episode.turns for episode in episodes):
        raise ValueError(
            f"the adapter writes by {granularity}, and only an adapter that writes by token can write a history turn "
            "by turn; leave out --turn-by-turn, also in records"
        )
