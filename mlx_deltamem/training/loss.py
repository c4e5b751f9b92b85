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
    contrast_zeroed: float = option(0.0, "Weight of the hinge: answers must be worse with a zero state.", least=0)
    contrast_corrupted: float = option(0.0, "The same with a state of no history.", least=0)
    contrast_margin: float = option(0.01, "How much worse, in nats.", above=0)
    teacher_kl: float = option(0.0, "Weight of KL(teacher || student); the teacher reads the whole chat.", least=0)

    def __post_init__(self) -> None:
        check_options(self)


class Watch(nn.Module):
    """What a step leaves for whoever looks, since mlx-lm's trainer passes on the loss alone.

    It is part of the trained module's state, and so of what a compiled step gives back.
    """

    def __init__(self):
        super().__init__()
        # The loss, the mean β of the history's tokens, and the norm of an episode's states over all layers.
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
    """

    def __init__(self, model: nn.Module, terms: LossTerms):
        super().__init__()
        self.model = model
        self.watch = Watch()
        self.recall = Recall()
        self._terms = terms

    def __call__(self, batch: Batch) -> tuple[mx.array, mx.array]:
        """The loss of a batch, and the number of its answer tokens."""
        terms = self._terms
        written, gates = passes.GateMeans(batch.mask), passes.GateMeans(batch.asked.mask)
        states = passes.write(self.model, batch, written)
        asked_states = passes.of_rows(states, batch.rows)
        logits = passes.read(self.model, asked_states, batch.asked, gates)
        loss = weighted_mean(answer_losses(logits, batch.asked), batch.asked.weights)
        if terms.sparsity:
            means = written.by_layer if terms.sparsity_pass == "write" else gates.by_layer
            loss = loss + terms.sparsity * mx.square(means - terms.sparsity_target).mean()
        if terms.contrast_zeroed:
            loss = loss + terms.contrast_zeroed * self._preference(logits, passes.empty(self.model), batch.asked)
        if terms.contrast_corrupted:
            loss = loss + terms.contrast_corrupted * self._preference(
                logits, passes.corrupted(asked_states), batch.asked
            )
        if terms.teacher_kl:
            loss = loss + terms.teacher_kl * self._distance_to_teacher(logits, batch)
        self.watch.loss = loss
        self.watch.write_gate = written.by_layer.mean()
        self.watch.state_norm = mx.sqrt(sum(mx.square(state).sum() for state in states) / batch.history.shape[0])
        if not self.training:
            self.recall.add(logits, batch.asked)
        return loss, (batch.asked.weights > 0).sum()

    def _preference(self, logits: mx.array, other: passes.States, asked: Asked) -> mx.array:
        """softplus((margin - gain) / margin), where gain is how much worse the answers are with another state."""
        margin = self._terms.contrast_margin
        with_other = passes.read(self.model, other, asked)
        kept, changed = (question_losses(each, asked) for each in (logits, with_other))
        hinges = nn.softplus((margin - (changed - kept)) / margin)
        return weighted_mean(hinges, asked.weights.any(axis=-1))

    def _distance_to_teacher(self, logits: mx.array, batch: Batch) -> mx.array:
        """KL(teacher || student) in nats, over all answer tokens."""
        # With an empty memory that is only read, the model is the frozen backbone.
        whole = mx.stop_gradient(passes.read(self.model, passes.empty(self.model), batch.context))
        teacher, student = (nn.log_softmax(each.astype(mx.float32)) for each in (whole, logits))
        return weighted_mean((mx.exp(teacher) * (teacher - student)).sum(axis=-1), batch.asked.weights > 0)


def answer_losses(logits: mx.array, asked: Asked) -> mx.array:
    """The cross-entropy `[N, A]` float32 of each answer token, in nats."""
    return nn.losses.cross_entropy(logits.astype(mx.float32), asked.targets)


def question_losses(logits: mx.array, asked: Asked) -> mx.array:
    """The mean cross-entropy `[N]` float32 of each question's answer, in nats; 0 for one that does not count."""
    counted = asked.weights > 0
    return (answer_losses(logits, asked) * counted).sum(axis=-1) / mx.maximum(counted.sum(axis=-1), 1)


def weighted_mean(values: mx.array, weights: mx.array) -> mx.array:
    return (values * weights).sum() / weights.sum()
