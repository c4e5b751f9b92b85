"""What training minimises: the answer's cross-entropy given the state, and what keeps the gates and the state honest.

Facts 3.3 and 3.4: the first two terms are the reference's; the others are its formulas that no released run used.
"""

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mlx_deltamem.training import passes
from mlx_deltamem.training.batches import Asked, Batch
from mlx_deltamem.training.option import check_options, option
from mlx_deltamem.training.recall import Recall


@dataclass(frozen=True)
class LossTerms:
    """The terms of the loss besides the cross-entropy, and their weights; 0 leaves a term out.

    Raises:
        ValueError: A number is out of range.
    """

    sparsity: float = option(0.01, "Weight of (mean β - target)², averaged over layers.", least=0)
    sparsity_target: float = option(0.05, "The mean β wanted.", least=0)
    sparsity_pass: str = option("read", "The pass whose tokens' β is meant.", choices=("read", "write"))
    contrast_zeroed: float = option(0.0, "Weight of the hinge: answers must be worse without memory.", least=0)
    contrast_corrupted: float = option(0.0, "The same with a state that belongs to no history.", least=0)
    contrast_margin: float = option(0.01, "How much worse, in nats.", above=0)
    teacher_kl: float = option(0.0, "Weight of KL(teacher || student); the teacher reads the whole chat.", least=0)

    def __post_init__(self) -> None:
        check_options(self)


class Watch(nn.Module):
    """What a step leaves for whoever looks, since mlx-lm's trainer passes on the loss alone.

    It is part of the trained module's state, and so of what a compiled step gives back.

    Attributes:
        loss: Of the batch.
        write_gate: The mean β of what is written of the histories; where they are empty, of the texts that are written.
        state_norm: ‖S‖ over all layers of an episode before its texts, the root mean square over episodes.
    """

    def __init__(self):
        super().__init__()
        self.loss = mx.array(0.0)
        self.write_gate = mx.array(0.0)
        self.state_norm = mx.array(0.0)
        self.freeze()


class EpisodeModel(nn.Module):
    """An attached model and what is minimised, in the form that mlx-lm's trainer takes.

    While it is not in training, `recall` counts the right answers.

    Args:
        model: The attached model; of its parameters only the adapter's are trained.
        terms: What is minimised besides the cross-entropy.
        segment: Checkpoint the write pass by layer and by so many tokens; 0 keeps all activations.
    """

    def __init__(self, model: nn.Module, terms: LossTerms, segment: int = 0):
        super().__init__()
        self.model = model
        self.watch = Watch()
        self.recall = Recall()
        self._terms = terms
        self._segment = segment

    def __call__(self, batch: Batch) -> tuple[mx.array, mx.array]:
        """The loss of a batch, in nats, and the number of its answer tokens."""
        write_gates, read_gates = _gate_means(batch), passes.GateMeans(batch.asked.mask)
        states = passes.write(self.model, batch, write_gates, self._segment)
        asked_states = passes.of_rows(states, batch.rows)
        logits = passes.read(self.model, asked_states, batch.asked, read_gates, batch.writes)
        loss = self._answers(logits, batch)
        terms = self._terms
        if terms.sparsity:
            gates = write_gates if terms.sparsity_pass == "write" else read_gates
            loss = loss + terms.sparsity * mx.square(gates.by_layer - terms.sparsity_target).mean()
        # Without a history the state is 0 already, and no other one to compare it with.
        if terms.contrast_zeroed and (batch.told or batch.writes):
            loss = loss + terms.contrast_zeroed * self._preference(logits, self._frozen(batch.asked), batch.asked)
        if terms.contrast_corrupted and batch.told:
            corrupted = self._corrupted(asked_states, batch)
            loss = loss + terms.contrast_corrupted * self._preference(logits, corrupted, batch.asked)
        if terms.teacher_kl:
            loss = loss + terms.teacher_kl * divergence(self._frozen(batch.context), logits, batch.asked)
        self.watch.loss = loss
        watched = write_gates if batch.told or not batch.writes else read_gates
        self.watch.write_gate = watched.by_layer.mean()
        self.watch.state_norm = mx.sqrt(sum(mx.square(state).sum() for state in states) / batch.count)
        if not self.training:
            self.recall.add(logits, batch.asked)
        tokens = (batch.asked.weights > 0).sum()
        return loss, tokens if batch.frozen is None else tokens + (batch.frozen.weights > 0).sum()

    def _answers(self, logits: mx.array, batch: Batch) -> mx.array:
        """The mean loss of the answer tokens: their cross-entropy, or how far they are from the frozen model."""
        losses, weights = answer_losses(logits, batch.asked), batch.asked.weights
        if batch.frozen is None:
            return weighted_mean(losses, weights)
        rows, kept = batch.frozen
        asked = batch.asked.of_rows(rows)
        teacher, student = self._frozen(asked), logits[rows]
        moved = divergences(teacher, student)
        if not self.training:
            self.recall.add_frozen(student, teacher, asked, batch.frozen)
        return ((losses * weights).sum() + (moved * kept).sum()) / (weights.sum() + kept.sum())

    def _frozen(self, asked: Asked) -> mx.array:
        """The logits of the frozen backbone: with an empty memory that is only read, no weight has an effect."""
        return mx.stop_gradient(passes.read(self.model, passes.empty(self.model), asked))

    def _corrupted(self, states: passes.States, batch: Batch) -> mx.array:
        """The logits with states that belong to no history."""
        # In the opposite order, since MLX 0.32 fails to compile the gradient of two passes that write the same.
        states = [state[::-1] for state in passes.corrupted(states)]
        asked = Asked(*(None if array is None else array[::-1] for array in batch.asked))
        return passes.read(self.model, states, asked, writes=batch.writes)[::-1]

    def _preference(self, logits: mx.array, other: mx.array, asked: Asked) -> mx.array:
        """softplus((margin - gain) / margin), where gain is how much worse a question's answer is with other logits;
        the mean over questions."""
        margin = self._terms.contrast_margin
        gain = question_losses(other, asked) - question_losses(logits, asked)
        counted = asked.weights.any(axis=-1)
        return weighted_mean(nn.softplus((margin - gain) / margin), *_not_alone(counted, asked))


def _gate_means(batch: Batch) -> passes.GateMeans:
    """For the gates of what is written of histories."""
    return passes.GateMeans(*(each.written_mask for each in batch.history))


def divergence(teacher: mx.array, student: mx.array, asked: Asked) -> mx.array:
    """KL(teacher || student) of logits `[N, A, vocabulary]`, in nats; the mean over answer tokens, float32."""
    # As float32: MLX 0.32 cannot compile a gradient beside two equal results, and the loss gives the sum of the bools.
    counted = (asked.weights > 0).astype(mx.float32)
    return weighted_mean(divergences(teacher, student), *_not_alone(counted, asked))


def divergences(teacher: mx.array, student: mx.array) -> mx.array:
    """KL(teacher || student) `[N, A]` float32 of logits `[N, A, vocabulary]`, in nats."""
    teacher, student = (nn.log_softmax(logits.astype(mx.float32)) for logits in (teacher, student))
    return (mx.exp(teacher) * (teacher - student)).sum(axis=-1)


def answer_losses(logits: mx.array, asked: Asked) -> mx.array:
    """The cross-entropy `[N, A]` float32 of each answer token, in nats."""
    return nn.losses.cross_entropy(logits.astype(mx.float32), asked.targets)


def question_losses(logits: mx.array, asked: Asked) -> mx.array:
    """The mean cross-entropy `[N]` float32 of each question's answer, in nats; 0 for one that does not count."""
    counted = asked.weights > 0
    return (answer_losses(logits, asked) * counted).sum(axis=-1) / mx.maximum(counted.sum(axis=-1), 1)


def weighted_mean(values: mx.array, weights: mx.array, least: float = 0.0) -> mx.array:
    """The mean of values by their weights. Where all of these may be 0, `least` is what the mean is divided by then."""
    total = weights.sum()
    return (values * weights).sum() / (mx.maximum(total, least) if least else total)


def _not_alone(counted: mx.array, asked: Asked) -> tuple[mx.array, float]:
    """Of weights `[N]` or `[N, A]`, 0 or 1, those of questions that are learned from more than one target, and what to
    divide their sum by where there may be none."""
    if asked.alone is not None:
        counted = counted * ~(asked.alone if counted.ndim == 1 else asked.alone[:, None])
    return counted, 1.0
