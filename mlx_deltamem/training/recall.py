"""Held-out recall: how many answers a model gets right from its memory, measured along with the held-out loss."""

import mlx.core as mx

from mlx_deltamem.training.batches import Asked


class Recall:
    """Counts of right answers.

    An answer is right where every token is the model's first choice given those before it: greedy decoding gives that
    answer, and the template's tokens after it. A value is right where that holds for its tokens, given what the answer
    says before them.
    """

    def __init__(self):
        self._counts = mx.zeros(4, mx.int32)

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
        self._counts = self._counts + mx.stack([each.sum() for each in (asked_for, answers, of_value, values)])
        mx.eval(self._counts)

    def take(self) -> dict[str, float]:
        """What was counted in all processes, and counting starts again.

        Returns:
            `questions`, their number; `answers`, the share that is right; and where records name values, `values`, the
            share of these. Nothing where nothing was counted.
        """
        total = mx.distributed.all_sum(self._counts, stream=mx.cpu)
        questions, answers, valued, values = total.tolist()
        self._counts = mx.zeros(4, mx.int32)
        shares = {"questions": questions, "answers": answers / questions} if questions else {}
        return shares | ({"values": values / valued} if valued else {})
