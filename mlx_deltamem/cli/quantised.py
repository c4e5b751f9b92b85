"""Check that mlx-lm can quantise the keys and values of a model, as `--kv-bits` asks for."""

import argparse

import mlx.nn as nn

from mlx_deltamem.core.cache import PromptCache, make_prompt_cache
from mlx_deltamem.options.rule import GROUP_SIZE


def check_quantised(model: nn.Module, args: argparse.Namespace) -> None:
    """Check the options of the quantisation. mlx-lm finds a problem only when the text reaches `--quantized-kv-start`.

    Raises:
        ValueError: The keys and values of the model cannot be quantised so.
    """
    if args.kv_bits is None:
        return
    if _has_windows(make_prompt_cache(model)):
        raise ValueError(
            "--kv-bits is not for this model: some of its layers keep the keys and values of a window, which mlx-lm "
            "does not quantise; leave it out"
        )
    if _has_windows(make_prompt_cache(model, args.max_kv_size)):
        raise ValueError("--kv-bits does not go with --max-kv-size; leave one of them out")
    size = _head_size(model)
    if size is not None and size % args.kv_group_size:
        fitting = [str(group) for group in GROUP_SIZE.choices or () if size % int(group) == 0]
        raise ValueError(
            f"--kv-group-size is {args.kv_group_size}, and a head of the model has {size} numbers, which it does not "
            f"divide; {'expected ' + ' or '.join(fitting) if fitting else 'no size does: leave --kv-bits out'}"
        )


def _has_windows(cache: PromptCache) -> bool:
    """Whether a new prompt cache has entries that keep a window of the text, which mlx-lm does not quantise."""
    for entry in cache:
        try:
            if hasattr(entry, "to_quantized"):
                entry.to_quantized()
        except NotImplementedError:
            return True
    return False


def _head_size(model: nn.Module) -> int | None:
    """The numbers in a key of one head; None if the model's configuration does not say it."""
    for given in (model.args, getattr(model.args, "text_config", None) or {}):
        named = given if isinstance(given, dict) else vars(given)
        if size := named.get("head_dim"):
            return int(size)
        if named.get("hidden_size") and named.get("num_attention_heads"):
            return int(named["hidden_size"]) // int(named["num_attention_heads"])
    return None
