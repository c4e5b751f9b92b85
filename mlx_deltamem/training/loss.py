"""The training loss: the cross-entropy of the answers given the states, and optional terms (facts 3.3 and 3.4).

The first two terms are the reference's. The others are formulas of the reference that no released run used.
"""

import math

import mlx.core as mx
import mlx.nn as nn

from mlx_deltamem.core.key_shift import square
from mlx_deltamem.training import passes
from mlx_deltamem.training.accuracy import Accuracy
from mlx_deltamem.training.batch import Asked, Batch
from mlx_deltamem.training.terms import LossTerms

_REVERSED = slice(None, None, -1)


class Watch(nn.Module):
    """The numbers of a step for its reports, since mlx-lm's trainer passes on the loss alone.

    They are part of the trained module's state, which a compiled step returns.

    Attributes:
        loss: The loss of the batch.
        write_gate: The mean β over the written tokens of the histories; without histories, over the written texts. A
            training step that writes nothing keeps the number of the step before it; NaN if there is none.
        state_norm: ‖S‖ over all layers of an episode after its history; the root mean square over the episodes with a
            history. A training step without histories keeps the number of the step before it; NaN if there is none.
    """

    def __init__(self):
        super().__init__()
        self.loss = mx.array(0.0)
        self.write_gate = mx.array(math.nan)
        self.state_norm = mx.array(math.nan)
        self.freeze()


class EpisodeModel(nn.Module):
    """An attached model with its loss, in the form that mlx-lm's trainer takes.

    In evaluation mode, `accuracy` counts the right answers.

    Args:
        model: The attached model. Only the adapter's parameters are trained.
        terms: The terms of the loss besides the cross-entropy.
        segment: Checkpoint the gradient of the write pass per layer and this many tokens; 0 keeps all activations.
    """

    def __init__(self, model: nn.Module, terms: LossTerms, segment: int = 0):
        super().__init__()
        self.model = model
        self.watch = Watch()
        self.accuracy = Accuracy()
        self._terms = terms
        self._segment = segment

    def __call__(self, batch: Batch) -> tuple[mx.array, mx.array]:
        """Return the loss of a batch, in nats, and the number of its answer tokens."""
        write_gates = passes.GateMeans(*(each.written_mask for each in batch.history))
        read_gates = passes.GateMeans(batch.asked.mask)
        states = passes.write(self.model, batch, write_gates, self._segment)
        asked_states = passes.of_rows(states, batch.rows)
        logits = passes.read(self.model, asked_states, batch.asked, read_gates, batch.writes)
        loss = self._answer_loss(logits, batch)
        terms = self._terms
        if terms.sparsity:
            gates = write_gates if terms.sparsity_pass == "write" else read_gates
            loss = loss + terms.sparsity * mx.square(gates.by_layer - terms.sparsity_target).mean()
        # Without a history the state is 0, and no other state can be compared with it.
        if terms.contrast_zeroed and (batch.has_history or batch.writes):
            loss = loss + terms.contrast_zeroed * self._hinge(logits, self._frozen(batch.asked), batch.asked)
        if terms.contrast_corrupted and batch.has_history:
            corrupted = self._corrupted(asked_states, batch)
            loss = loss + terms.contrast_corrupted * self._hinge(logits, corrupted, batch.asked)
        if terms.teacher_kl and batch.context is not None:
            loss = loss + terms.teacher_kl * divergence(self._frozen(batch.context), logits, batch.asked)
        self.watch.loss = loss
        if self.training:
            self._note_writes(batch, states, write_gates if batch.has_history else read_gates)
        else:
            self.accuracy.add(logits, batch.asked)
        tokens = (batch.asked.weights > 0).sum()
        return loss, tokens if batch.frozen is None else tokens + (batch.frozen.weights > 0).sum()

    def _note_writes(self, batch: Batch, states: passes.States, gates: passes.GateMeans) -> None:
        """Keep the numbers of what a step has written. A step without a history has no state, rather than one of 0."""
        if batch.has_history or batch.writes:
            self.watch.write_gate = gates.by_layer.mean()
        if batch.has_history:
            squares = sum((mx.square(square(state)).sum() for state in states), start=mx.array(0.0))
            told = mx.zeros(batch.size, mx.bool_)
            for each in batch.history:
                rows = slice(None) if each.episodes is None else each.episodes
                told[rows] = told[rows] | (each.lengths > 0)
            self.watch.state_norm = mx.sqrt(squares / told.sum())

    def _answer_loss(self, logits: mx.array, batch: Batch) -> mx.array:
        """The mean loss of the answer tokens: the cross-entropy, or the divergence from the frozen model."""
        weighted = (answer_losses(logits, batch.asked) * batch.asked.weights).sum()
        if batch.frozen is None:
            return weighted / batch.total
        rows, frozen_weights = batch.frozen
        asked = batch.asked.of_rows(rows)
        teacher, student = self._frozen(asked), logits[rows]
        if not self.training:
            self.accuracy.add_frozen(student, teacher, asked, batch.frozen)
        return (weighted + (divergences(teacher, student) * frozen_weights).sum()) / batch.total

    def _frozen(self, asked: Asked) -> mx.array:
        """The logits of the frozen model: an empty memory that is only read has no effect."""
        return mx.stop_gradient(passes.read(self.model, passes.empty(self.model), asked))

    def _corrupted(self, states: passes.States, batch: Batch) -> mx.array:
        """The logits with states that belong to no history."""
        # The rows are reversed, as MLX 0.32 fails to compile the gradient of two passes that write the same tokens.
        states = [state[_REVERSED] for state in passes.corrupted(states)]
        asked = batch.asked.of_rows(_REVERSED)
        return passes.read(self.model, states, asked, writes=batch.writes)[_REVERSED]

    def _hinge(self, logits: mx.array, other: mx.array, asked: Asked) -> mx.array:
        """The mean over questions of softplus((margin - gain) / margin).

        The gain is the loss of a question's answer with the other logits minus its loss with these logits.
        """
        margin = self._terms.contrast_margin
        gain = question_losses(other, asked) - question_losses(logits, asked)
        counted = asked.weights.any(axis=-1)
        return weighted_mean(nn.softplus((margin - gain) / margin), _not_alone(counted, asked))


def divergence(teacher: mx.array, student: mx.array, asked: Asked) -> mx.array:
    """Return the mean over answer tokens of KL(teacher || student), float32, in nats.

    Args:
        teacher, student: Logits, `[N, A, vocabulary]`.
        asked: The questions.
    """
    # As float32: MLX 0.32 cannot compile a gradient beside two equal results, and the loss returns the sum of bools.
    counted = (asked.weights > 0).astype(mx.float32)
    return weighted_mean(divergences(teacher, student), _not_alone(counted, asked))


def divergences(teacher: mx.array, student: mx.array) -> mx.array:
    """Return KL(teacher || student) of logits `[N, A, vocabulary]`: `[N, A]` float32, in nats."""
    teacher, student = (nn.log_softmax(logits.astype(mx.float32)) for logits in (teacher, student))
    return (mx.exp(teacher) * (teacher - student)).sum(axis=-1)


def answer_losses(logits: mx.array, asked: Asked) -> mx.array:
    """Return the cross-entropy of each answer token: `[N, A]` float32, in nats."""
    return nn.losses.cross_entropy(logits.astype(mx.float32), asked.targets)


def question_losses(logits: mx.array, asked: Asked) -> mx.array:
    """Return the mean cross-entropy of each answer: `[N]` float32, in nats; 0 for a filler question."""
    counted = asked.weights > 0
    return (answer_losses(logits, asked) * counted).sum(axis=-1) / mx.maximum(counted.sum(axis=-1), 1)


def weighted_mean(values: mx.array, weights: mx.array) -> mx.array:
    """Return the weighted mean of values; the sum of the weights counts as at least 1."""
    return (values * weights).sum() / mx.maximum(weights.sum(), 1.0)


def _not_alone(counted: mx.array, asked: Asked) -> mx.array:
    """Set weights to 0 for questions that are trained on their answer alone.

    Args:
        counted: `[N]` or `[N, A]`, weights of 0 or 1.
        asked: The questions.
    """
    if asked.alone is not None:
        counted = counted * ~(asked.alone if counted.ndim == 1 else asked.alone[:, None])
    return counted
