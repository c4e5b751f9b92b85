"""The sampler and the logits processors of a request, with a seed for each request."""

import random
import secrets

import mlx.core as mx
from mlx_lm.sample_utils import LogitsProcessor, Sampler, greedy_sampler, make_logits_processors, make_sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_deltamem.serving.exchange import Sampling


class SeededSampler:
    """A sampler with random numbers that no other request uses.

    mlx-lm's samplers use MLX's global random numbers. So requests with the same seed would depend on the requests
    beside them.

    Args:
        sampler: A sampler of mlx-lm.
        seed: The seed.
    """

    def __init__(self, sampler: Sampler, seed: int):
        self._sampler = sampler
        self._random = random.Random(seed)

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Choose tokens `[B]` by log-probabilities `[B, V]`."""
        mx.random.seed(self._random.getrandbits(64))
        tokens: mx.array = self._sampler(logprobs)
        # So that requests without a seed are not decided by this one.
        mx.random.seed(secrets.randbits(64))
        return tokens


def sampler_of(sampling: Sampling, tokenizer: TokenizerWrapper) -> Sampler:
    """The sampler of a request. Requests without a temperature share one, so that they are sampled in one call."""
    if sampling.temperature == 0:
        return greedy_sampler
    newline = tokenizer.encode("\n", add_special_tokens=False)
    sampler = make_sampler(
        sampling.temperature,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        top_k=sampling.top_k,
        xtc_probability=sampling.xtc_probability,
        xtc_threshold=sampling.xtc_threshold,
        xtc_special_tokens=[*newline, *tokenizer.eos_token_ids],
    )
    return sampler if sampling.seed is None else SeededSampler(sampler, sampling.seed)


def processors_of(sampling: Sampling) -> list[LogitsProcessor]:
    """The logits processors of a request."""
    return make_logits_processors(
        dict(sampling.logit_bias) or None,
        sampling.repetition_penalty,
        sampling.repetition_context_size,
        sampling.presence_penalty,
        sampling.presence_context_size,
        sampling.frequency_penalty,
        sampling.frequency_context_size,
    )
