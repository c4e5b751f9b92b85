"""Draw tokens at random in a way that depends on a seed alone, whatever else is drawn at the same time."""

import mlx.core as mx
from mlx_lm.sample_utils import Sampler, apply_top_k, apply_top_p, greedy_sampler

from mlx_deltamem.evaluation.task import Sampling


def seeded_sampler(sampling: Sampling, seed: int) -> Sampler:
    """A sampler for one reply. mlx-lm's own draw from one stream of random numbers for all replies of a batch."""
    if sampling.temp == 0:
        return greedy_sampler
    key = mx.random.key(seed)

    def sample(logprobs: mx.array) -> mx.array:
        nonlocal key
        key, now = mx.random.split(key)
        if 0 < sampling.top_p < 1:
            logprobs = apply_top_p(logprobs, sampling.top_p)
        if sampling.top_k:
            logprobs = apply_top_k(logprobs, sampling.top_k)
        return mx.random.categorical(logprobs / sampling.temp, key=now)

    return sample
