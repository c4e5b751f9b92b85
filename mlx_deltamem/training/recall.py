"""Held-out recall: how many answers a model gets right from its memory, measured along with the held-out loss."""

from collections.abc import Sequence

import mlx.core as mx

from mlx_deltamem.training.batches import Asked, Frozen

# What is counted of each question.
_COUNTED = ("questions", "right answers", "questions with a value", "right values", "tokens alike", "tokens")


class Recall:
    """Counts of right answers.

    An answer is right where every token is the model's first choice given those before it: greedy decoding gives that
    answer, and the template's tokens after it. A value is right where that holds for its tokens, given what the answer
    says before them. Where the target is the frozen model, it is counted how many tokens of an answer are places where
    both models' first choices are alike.

    Args:
        kinds: Kinds of questions that are also counted each by itself, numbered from 1 on.
    """

    def __init__(self, kinds: Sequence[str] = ()):
        self._kinds = ("", *kinds)
        self._counts = self._none()

    def add(self, logits: mx.array, asked: Asked) -> None:
        """Count the answers of N questions.

        Args:
            logits: `[N, A, vocabulary]`, of their answers.
            asked: The questions; those that weigh nothing are left out.
        """
        right = logits.argmax(axis=-1) == asked.targets
        counted = asked.weights > 0
        asked_for, of_value = counted.any(axis=-1), asked.values.any(axis=-1)
        answers = (right | ~counted).all(axis=-1) & asked_for
        values = (right | ~asked.values).all(axis=-1) & of_value
        self._add(asked, [asked_for, answers, of_value, values, mx.zeros_like(answers), mx.zeros_like(answers)])

    def add_frozen(self, logits: mx.array, teacher: mx.array, asked: Asked, frozen: Frozen) -> None:
        """Count the answers whose target is the frozen model.

        Args:
            logits, teacher: `[F, A, vocabulary]`, of their answers: the model's, and the frozen one's.
            asked: These F questions.
            frozen: Their weights; those that weigh nothing are left out.
        """
        counted = frozen.weights > 0
        alike = (logits.argmax(axis=-1) == teacher.argmax(axis=-1)) & counted
        nothing = mx.zeros(len(counted), mx.int32)
        self._add(asked, [nothing] * 4 + [alike.sum(axis=-1), counted.sum(axis=-1)])

    def take(self) -> dict[str, float]:
        """What was counted in all processes, and counting starts again.

        Returns:
            `questions`, their number; `answers`, the share that is right; where records name values, `values`, the
            share of these; where the target is the frozen model, `alike`, the share of tokens. The same for each kind,
            as `answers:kind`. Nothing where nothing was counted.
        """
        by_kind = mx.distributed.all_sum(self._counts, stream=mx.cpu).tolist()
        self._counts = self._none()
        found = _shares([sum(column) for column in zip(*by_kind, strict=True)])
        for kind, counts in zip(self._kinds[1:], by_kind[1:], strict=True):
            found |= {f"{name}:{kind}": share for name, share in _shares(counts).items()}
        return found

    def _none(self) -> mx.array:
        return mx.zeros((len(self._kinds), len(_COUNTED)), mx.int32)

    def _add(self, asked: Asked, columns: list[mx.array]) -> None:
        counts = mx.stack([column.astype(mx.int32) for column in columns], axis=-1)
        kinds = mx.zeros(len(counts), mx.int32) if asked.kinds is None else asked.kinds
        members = kinds == mx.arange(len(self._kinds))[:, None]
        self._counts = self._counts + (members[..., None] * counts).sum(axis=1)
        mx.eval(self._counts)


def _shares(counts: list[int]) -> dict[str, float]:
    questions, answers, valued, values, alike, tokens = counts
    shares = {"questions": questions, "answers": answers / questions} if questions else {}
    shares |= {"values": values / valued} if valued else {}
    return shares | ({"alike": alike / tokens} if tokens else {})
