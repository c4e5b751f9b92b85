"""Fits the first weights of an adapter to what the frozen backbone does while it sees the text.

An adapter stands in for the backbone's attention to text that is out of view. So its first weights can be computed from
a few hundred questions whose value is in the history:

- queries: the token before a value where it is asked for, and the token before it where it was told, get like queries.
  They are the directions in which the two agree most, relative to all tokens. With a key shift, the query of the token
  before a value is the key of the value.
- values and the output head: the difference that the text makes to the layer's output where the value is asked for,
  predicted from the value's token where it was told (ridge regression, reduced to the rank of the state).
- write and read gates: two logistic regressions, which tokens are values and before which tokens values are asked for.

Training goes on from there. The idea of a start from activations is a user's (facts.md 8.2); the method is ours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from mlx_deltamem.core.config import DeltaMemConfig
from mlx_deltamem.core.model import attached_attention
from mlx_deltamem.core.reads import Reads
from mlx_deltamem.core.use import attachment_of, observing, read_only
from mlx_deltamem.training.episode import Episode, Question

Matrix = npt.NDArray[np.float64]

# Ridge, in shares of the mean variance: of the queries, of the values, of the gates.
_QUERY_RIDGE, _VALUE_RIDGE, _GATE_RIDGE = 0.03, 0.1, 1e-2
# The length of raw queries, which pass through tanh.
_QUERY_SCALE = 0.7
# What is read is fainter than what the regression predicts: by the write gate, the read gate, and a query that is only
# like the key.
_GAIN = 2.0
# σ(6) = 0.9975 of the state is kept by a token that is not written.
_KEEP_BIAS = 6.0
# Tokens of each text that stand for all tokens: of the history and of the question.
_SAMPLED_TOLD, _SAMPLED_ASKED = 12, 4
_NEWTON_STEPS = 50


@dataclass(frozen=True)
class _Place:
    """A value in a history and in an answer.

    Attributes:
        told: The tokens of the pass of the history that holds the value.
        asked: The tokens of the question with its answer.
        shared: The number of tokens that both begin with, the visible start of the chat.
        begins: Where the value begins in `told`, its first and its last mention.
        answer: Where the value begins in `asked`.
        length: The number of tokens of the value.
    """

    told: list[int]
    asked: list[int]
    shared: int
    begins: tuple[int, int]
    answer: int
    length: int


@dataclass(frozen=True)
class _Activations:
    """Inputs of a layer, `[n, hidden]`, and what the text changes in its outputs, `[n, width]`.

    Attributes:
        before_told, before_asked: The tokens before those of values; row by row for the same token.
        told: The tokens of values in the history, twice: at their first and at their last mention.
        change: The change of the output at the tokens before those of values in the answer.
        sampled: Tokens that stand for all.
        is_value: `[n]` bool, which of `sampled` are tokens of values.
    """

    before_told: Matrix
    before_asked: Matrix
    told: Matrix
    change: Matrix
    sampled: Matrix
    is_value: npt.NDArray[np.bool_]

    @classmethod
    def joined(cls, parts: "Sequence[_Activations]") -> "_Activations":
        """Put the rows of several one below the other."""
        return cls(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(cls)))


def fit_adapter(model: nn.Module, episodes: Sequence[Episode], questions: int, seed: int = 0) -> int:
    """Replace the weights of a new adapter by fitted ones.

    Args:
        model: An attached model; its adapter's weights are replaced.
        episodes: Episodes with questions that have a value.
        questions: The number of questions to use, drawn at random.
        seed: The seed of the draw.

    Returns:
        The number of questions that were used.

    Raises:
        ValueError: The configuration of the adapter has no such fit, or too few questions have a value that the history
            has too.
    """
    config = attachment_of(model).config
    _check(config)
    rng = np.random.default_rng(seed)
    places = [place for episode in episodes for question in episode.questions if (place := _place(episode, question))]
    chosen = [places[at] for at in rng.permutation(len(places))[:questions]]
    tokens = sum(place.length for place in chosen)
    if tokens < config.rank:
        raise ValueError(
            f"{len(chosen)} questions have a value that is in the history too, {tokens} tokens in all; --fit needs at "
            f"least as many tokens as the rank, {config.rank}"
        )
    activations = _activations(model, chosen, rng)
    for layer, attention in attached_attention(model).items():
        weights = _fitted(activations[layer], config)
        attention.delta_mem.update({name: mx.array(weight.astype(np.float32)) for name, weight in weights.items()})
        mx.eval(attention.delta_mem.parameters())
    return len(chosen)


def _check(config: DeltaMemConfig) -> None:
    wanted: dict[str, tuple[object, object]] = {
        "--key-shift": (config.key_shift, True),
        "--normalize-qk": (config.normalize_qk, True),
        "--num-state-heads": (config.num_state_heads, 1),
        "--memory-write-granularity": (config.memory_write_granularity, "token"),
        "--state-update-mode": (config.state_update_mode, "standard"),
        "--couple-lambda": (config.couple_lambda, False),
        "--trainable-delta-scale": (config.trainable_delta_scale, False),
        "--delta-o-rmsnorm": (config.delta_o_rmsnorm, False),
        "o in --delta-heads": ("o" in config.delta_heads, True),
    }
    wrong = [f"{name} is {found}, expected {best}" for name, (found, best) in wanted.items() if found != best]
    if wrong:
        raise ValueError(f"--fit cannot fit this adapter: {'; '.join(wrong)}")


def _place(episode: Episode, question: Question) -> _Place | None:
    """Find the value of a question in the last pass of the history that has it; None if there is none."""
    begin, end = question.value
    value = question.ids[begin:end]
    if not value or begin == 0:
        return None
    for told, _ in reversed(episode.passes):
        begins = [at for at in range(1, len(told) - len(value) + 1) if told[at : at + len(value)] == value]
        if begins:
            pairs = zip(told, question.ids[: question.answer], strict=False)
            shared = next((at for at, (one, other) in enumerate(pairs) if one != other), 0)
            return _Place(told, question.ids, shared, (begins[0], begins[-1]), begin, len(value))
    return None


def _activations(model: nn.Module, places: Sequence[_Place], rng: np.random.Generator) -> dict[int, _Activations]:
    """Run the frozen backbone over the questions, with the text in view and without."""
    parts: dict[int, list[_Activations]] = {layer: [] for layer in attached_attention(model)}
    for place in places:
        steps = np.arange(place.length)
        before_told = np.concatenate([begin - 1 + steps for begin in place.begins])
        asked = place.answer - 1 + steps
        moved = asked + len(place.told) - place.shared
        told_sample = rng.permutation(len(place.told))[:_SAMPLED_TOLD]
        asked_sample = rng.permutation(len(place.asked))[:_SAMPLED_ASKED]
        is_value = np.isin(np.concatenate([told_sample, np.full(len(asked_sample), -1)]), before_told + 1)
        in_view = dict(_layers(model, [*place.told, *place.asked[place.shared :]]))
        for layer, (alone, output) in _layers(model, place.asked):
            seen, output_in_view = in_view[layer]
            change = output_in_view[moved] - output[asked]
            parts[layer].append(
                _Activations(
                    before_told=seen[before_told],
                    before_asked=np.concatenate([alone[asked]] * 2),
                    told=seen[before_told + 1],
                    change=np.concatenate([change] * 2),
                    sampled=np.concatenate([seen[told_sample], alone[asked_sample]]),
                    is_value=is_value,
                )
            )
    return {layer: _Activations.joined(rows) for layer, rows in parts.items()}


def _layers(model: nn.Module, ids: list[int]) -> Iterator[tuple[int, tuple[Matrix, Matrix]]]:
    """The inputs `[T, hidden]` and outputs `[T, width]` of each attached layer of the frozen backbone."""
    found: list[tuple[int, mx.array, mx.array]] = []

    def keep(layer: int, reads: Reads, output: mx.array) -> None:
        assert reads.inputs is not None
        found.append((layer, reads.inputs[0].astype(mx.float32), output[0].astype(mx.float32)))

    # An empty memory that is only read leaves the backbone as it is, bit for bit.
    with read_only(model), observing(model, keep):
        mx.eval(model(mx.array([ids])))
    for layer, inputs, output in found:
        mx.eval(inputs, output)
        yield layer, (np.array(inputs), np.array(output))


def _fitted(found: _Activations, config: DeltaMemConfig) -> dict[str, Matrix]:
    """The weights of one layer."""
    queries = _queries(found, config.rank)
    values, output = _values(found, config.rank)
    hidden = queries.shape[1]
    all_told = np.concatenate([found.sampled, found.told])
    write, write_bias = _logistic(all_told, np.concatenate([found.is_value, np.ones(len(found.told))]))
    gates = config.gate_width
    weights = {
        "memory_q_proj": queries * _QUERY_SCALE,
        "memory_k_proj": np.zeros((config.rank, hidden)),
        "key_shift": np.ones(config.rank),
        "memory_v_proj": values * (_GAIN * config.rank / config.alpha),
        "delta_o_proj": output,
        "beta_proj": np.repeat(write[None], gates, axis=0),
        "beta_bias": np.full(gates, write_bias),
        "lambda_proj": np.zeros((gates, hidden)),
        "lambda_bias": np.full(gates, _KEEP_BIAS),
    }
    if config.read_gate:
        tokens = np.concatenate([found.sampled, found.before_told, found.before_asked])
        asked = np.concatenate([np.zeros(len(tokens) - len(found.before_asked)), np.ones(len(found.before_asked))])
        read, read_bias = _logistic(tokens, asked)
        weights |= {"read_gate_proj": read[None], "read_gate_bias": np.array([read_bias])}
    return weights


def _queries(found: _Activations, rank: int) -> Matrix:
    """`[r, hidden]`: the directions in which told and asked places agree most, of variance 1 over all tokens."""
    mean = found.sampled.mean(axis=0)
    told, asked = found.before_told - mean, found.before_asked - mean
    tokens = np.concatenate([found.sampled - mean, told, asked])
    scatter = _with_ridge(tokens.T @ tokens / len(tokens), _QUERY_RIDGE)
    # Adapters have no bias that could take the mean away, so that no direction may see it.
    unit = mean / np.linalg.norm(mean)
    scatter += np.outer(unit, unit) * np.trace(scatter)
    told, asked = told - told.mean(axis=0), asked - asked.mean(axis=0)
    agreement = told.T @ asked / len(told)
    # The directions w with the largest wᵀ agreement w among those with wᵀ scatter w = 1.
    inverse = np.linalg.inv(np.linalg.cholesky(scatter))
    _, vectors = np.linalg.eigh(inverse @ (agreement + agreement.T) @ inverse.T)
    return (inverse.T @ vectors[:, -rank:]).T


def _values(found: _Activations, rank: int) -> tuple[Matrix, Matrix]:
    """`[r, hidden]` and `[width, r]`: from the value's token to r numbers, and from these to the layer's output."""
    inner = _with_ridge(found.told.T @ found.told, _VALUE_RIDGE)
    regression = np.linalg.solve(inner, found.told.T @ found.change)
    _, _, directions = np.linalg.svd(found.told @ regression, full_matrices=False)
    output = directions[:rank].T
    return (regression @ output).T, output


def _logistic(tokens: Matrix, labels: npt.NDArray[np.float64] | npt.NDArray[np.bool_]) -> tuple[Matrix, float]:
    """`[hidden]` and a bias: a logistic regression by steps with a fixed bound on its curvature."""
    scale = 1 / np.sqrt((tokens**2).mean())
    x = tokens * scale
    curvature = x.T @ x / (4 * len(x)) + np.eye(x.shape[1]) * _GATE_RIDGE
    weights, bias = np.zeros(x.shape[1]), -2.0
    for _ in range(_NEWTON_STEPS):
        error = 1 / (1 + np.exp(-(x @ weights + bias))) - labels
        weights -= np.linalg.solve(curvature, x.T @ error / len(x) + _GATE_RIDGE / 10 * weights)
        bias -= 4 * error.mean()
    return weights * scale, float(bias)


def _with_ridge(matrix: Matrix, share: float) -> Matrix:
    return matrix + np.eye(len(matrix)) * (share * np.trace(matrix) / len(matrix))
