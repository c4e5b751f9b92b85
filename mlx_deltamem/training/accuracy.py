"""Counts the held-out answers that a model gets right, along with the held-out loss."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlx_deltamem.training.batch import Asked, Frozen

# The columns of the counts.
_COUNTED = ("questions", "right answers", "questions with a value", "right values", "tokens alike", "tokens")


class Accuracy:
    """Counts right answers.

    An answer is right if each of its tokens has the largest logit, given the tokens before it: greedy decoding then
    generates this answer. A value is right if this holds for its tokens, given the tokens of the answer before it. If
    the target is the frozen model, the tokens are counted for which both models have the same largest logit.

    Args:
        kinds: The kinds of questions that are also counted separately. They are numbered from 1.
    """

    def __init__(self, kinds: Sequence[str] = ()):
        self._kinds = ("", *kinds)
        self._counts = self._none()

    def add(self, logits: mx.array, asked: Asked) -> None:
        """Count the answers of N questions.

        Args:
            logits: `[N, A, vocabulary]`, the logits of their answers.
            asked: The questions. Tokens with weight 0 do not count.
        """
        right = logits.argmax(axis=-1) == asked.targets
        counted = asked.weights > 0
        asked_for, of_value = counted.any(axis=-1), asked.values.any(axis=-1)
        answers = (right | ~counted).all(axis=-1) & asked_for
        values = (right | ~asked.values).all(axis=-1) & of_value
        self._add(asked, [asked_for, answers, of_value, values, mx.zeros_like(answers), mx.zeros_like(answers)])

    def add_frozen(self, logits: mx.array, teacher: mx.array, asked: Asked, frozen: Frozen) -> None:
        """Count the answers of F questions whose target is the frozen model.

        Args:
            logits, teacher: `[F, A, vocabulary]`, the logits of their answers: the model's, and the frozen model's.
            asked: These F questions.
            frozen: Their weights. Tokens with weight 0 do not count.
        """
        counted = frozen.weights > 0
        alike = (logits.argmax(axis=-1) == teacher.argmax(axis=-1)) & counted
        nothing = mx.zeros(len(counted), mx.int32)
        self._add(asked, [nothing] * 4 + [alike.sum(axis=-1), counted.sum(axis=-1)])

    def take(self) -> dict[str, float]:
        """Return the shares over all processes, and set the counts back to 0.

        Returns:
            `questions`, their number; `answers`, the share that is right; `values`, the share of right values, if
            records name values; `alike`, the share of tokens, if the target is the frozen model. The same for each
            kind, as `answers:kind`. Numbers of which nothing was counted are missing.
        """
        by_kind = np.array(mx.distributed.all_sum(self._counts, stream=mx.cpu))
        self._counts = self._none()
        found = _shares(by_kind.sum(axis=0).tolist())
        for kind, counts in zip(self._kinds[1:], by_kind[1:].tolist(), strict=True):
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
    shares: dict[str, float] = {"questions": questions, "answers": answers / questions} if questions else {}
    shares |= {"values": values / valued} if valued else {}
    return shares | ({"alike": alike / tokens} if tokens else {})
