"""The first weights of one layer of an adapter, fitted to activations of the frozen backbone (`fit.py`)."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_deltamem.core.config import DeltaMemConfig

# Activations are kept in float32, as there are many, and computed with in float64.
Matrix = npt.NDArray[np.floating[Any]]

# Ridge, in shares of the mean variance: of the queries, of the values, of the gates.
_QUERY_RIDGE, _VALUE_RIDGE, _GATE_RIDGE = 0.03, 0.1, 1e-2
# The length of raw queries, which pass through tanh.
_QUERY_SCALE = 0.7
# What is read is fainter than what the regression predicts: by the write gate, the read gate, and a query that is only
# like the key.
_GAIN = 2.0
# σ(6) = 0.9975 of the state is kept by a token that is not written.
_KEEP_BIAS = 6.0
_NEWTON_STEPS = 50


@dataclass(frozen=True)
class Activations:
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
    def joined(cls, parts: "Sequence[Activations]") -> "Activations":
        """Put the rows of several one below the other."""
        return cls(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(cls)))

    def in_float64(self) -> "Activations":
        """The same with float64 rows."""
        rows = {name: rows.astype(np.float64) for name, rows in vars(self).items() if name != "is_value"}
        return replace(self, **rows)


def fitted_weights(found: Activations, config: DeltaMemConfig) -> dict[str, Matrix]:
    """The weights of one layer."""
    found = found.in_float64()
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


def _queries(found: Activations, rank: int) -> Matrix:
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


def _values(found: Activations, rank: int) -> tuple[Matrix, Matrix]:
    """`[r, hidden]` and `[width, r]`: from the value's token to r numbers, and from these to the layer's output."""
    inner = _with_ridge(found.told.T @ found.told, _VALUE_RIDGE)
    regression = np.linalg.solve(inner, found.told.T @ found.change)
    _, _, directions = np.linalg.svd(found.told @ regression, full_matrices=False)
    output = directions[:rank].T
    return (regression @ output).T, output


def _logistic(tokens: Matrix, labels: Matrix | npt.NDArray[np.bool_]) -> tuple[Matrix, float]:
    """`[hidden]` and a bias: a logistic regression by steps with a fixed bound on its curvature."""
    scale = 1 / np.sqrt((tokens**2).mean())
    x = tokens * scale
    curvature = x.T @ x / (4 * len(x)) + np.eye(x.shape[1]) * _GATE_RIDGE
    downhill = np.linalg.inv(curvature)
    weights, bias = np.zeros(x.shape[1]), -2.0
    for _ in range(_NEWTON_STEPS):
        # The sigmoid of x @ weights + bias, in a form that cannot overflow.
        error = (1 + np.tanh((x @ weights + bias) / 2)) / 2 - labels
        weights -= downhill @ (x.T @ error / len(x) + _GATE_RIDGE / 10 * weights)
        bias -= 4 * error.mean()
    return weights * scale, float(bias)


def _with_ridge(matrix: Matrix, share: float) -> Matrix:
    return matrix + np.eye(len(matrix)) * (share * np.trace(matrix) / len(matrix))
