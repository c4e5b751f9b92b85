"""Load a model that is spread over several ranks, with an adapter. mlx-lm spreads it."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_model, sharded_load

from mlx_deltamem.adapters.checkpoint import check_checkpoint, check_dtypes, check_encodes, one_error
from mlx_deltamem.adapters.fingerprint import backbone_facts, facts_fingerprint
from mlx_deltamem.adapters.folder import load_adapter
from mlx_deltamem.adapters.hub_errors import hub_errors
from mlx_deltamem.adapters.loading import attach, check_folder, load_model_type, model_folder, set_names
from mlx_deltamem.core.spread import Spread
from mlx_deltamem.files.atomic import user_path
from mlx_deltamem.files.jsonl import Json
from mlx_deltamem.ranks.clocks import check_clocks
from mlx_deltamem.ranks.world import World

_INDEX = "model.safetensors.index.json"


def load_spread(
    path_or_hf_repo: str | Path,
    adapter: str | Path | None,
    world: World,
    pipeline: bool = False,
    trust_remote_code: bool = False,
) -> tuple[nn.Module, TokenizerWrapper]:
    """Load this rank's part of a model and the tokenizer, and attach an adapter. All ranks must call it.

    Args:
        path_or_hf_repo: The model: a folder, at the same place on each machine, or a Hub repo.
        adapter: A folder, at the same place on each machine, or a Hub repo; None: none is attached.
        world: The ranks.
        pipeline: Split the layers; if not, split the tensors of each layer.
        trust_remote_code: Run code that comes with the model.

    Raises:
        FileNotFoundError: There is no such model or adapter.
        ValueError: The model cannot be split so, the adapter does not fit, one of them is damaged, or the clocks of the
            ranks differ.
    """
    check_folder(path_or_hf_repo)
    check_clocks(world)
    loaded = None if adapter is None else load_adapter(adapter)
    # In a pipeline each rank downloads its own files only.
    is_partial = pipeline and not user_path(path_or_hf_repo).exists()
    folder = user_path(path_or_hf_repo) if is_partial else model_folder(path_or_hf_repo, None)
    backbone = ""
    if is_partial:
        # First, since an error of the Hub is not one of the model.
        load_model_type(path_or_hf_repo)
    else:
        check_checkpoint(folder)
        with one_error(folder):
            whole, _ = load_model(folder, lazy=True, trust_remote_code=trust_remote_code)
        _check_splits(whole, folder, world, pipeline)
        backbone = facts_fingerprint(whole, *backbone_facts(whole))
        del whole
    group = world.group
    with one_error(folder), hub_errors(str(path_or_hf_repo)):
        model, tokenizer = sharded_load(
            str(path_or_hf_repo) if is_partial else str(folder),
            group if pipeline else None,
            None if pipeline else group,
            tokenizer_config={"trust_remote_code": trust_remote_code},
            trust_remote_code=trust_remote_code,
        )
    check_dtypes(model, folder)
    check_encodes(tokenizer, folder)
    set_names(model, path_or_hf_repo)
    model.spread = Spread(world, backbone or _collected_fingerprint(model, world))
    if loaded is not None:
        attach(model, loaded)
    return model, tokenizer


def _check_splits(model: nn.Module, folder: Path, world: World, pipeline: bool) -> None:
    """Check that mlx-lm can split a whole model in the wanted way.

    Raises:
        ValueError: It cannot. The error says what can be done.
    """
    ways = {
        "--pipeline": hasattr(getattr(model, "model", None), "pipeline"),
        "split tensors": hasattr(model, "shard"),
    }
    wanted = "--pipeline" if pipeline else "split tensors"
    other = "leave --pipeline out" if pipeline else "use --pipeline in a command that has it"
    if not ways.pop(wanted):
        do = other if any(ways.values()) else "it runs on one machine only"
        raise ValueError(f"{folder} is of the type {model.model_type}, for which mlx-lm has no {wanted}: {do}")
    if pipeline:
        if not (folder / _INDEX).is_file():
            raise ValueError(f"{folder} has no {_INDEX}, which --pipeline needs; mlx_lm.convert writes it")
        if (count := len(model.layers)) < world.size:
            raise ValueError(f"{folder} has {count} layers; expected at least {world.size}, one for each rank")
        return
    arguments = model.args
    nested: Mapping[str, object] = getattr(arguments, "text_config", None) or {}
    for name, words in (("num_attention_heads", "attention heads"), ("num_key_value_heads", "key-value heads")):
        heads = getattr(arguments, name, None) or nested.get(name)
        # mlx-lm divides them without a check.
        if isinstance(heads, int) and heads % world.size:
            raise ValueError(
                f"{folder} has {heads} {words}, which cannot be dealt out to {world.size} ranks; expected a number of "
                f"ranks that divides them{', or --pipeline where the command has it' if any(ways.values()) else ''}"
            )


def _collected_fingerprint(model: nn.Module, world: World) -> str:
    """The fingerprint of a backbone in a pipeline, of which no rank has all files."""
    shapes, small = backbone_facts(model)
    own = {
        name: [line, *([str(small[name].dtype), _encoded(small[name])] if name in small else [])]
        for name, line in shapes.items()
    }
    lines: dict[str, str] = {}
    arrays: dict[str, mx.array] = {}
    for part in cast("list[dict[str, list[str]]]", world.collect(cast(Json, own))):
        for name, (line, *array) in part.items():
            lines[name] = line
            if array:
                arrays[name] = _decoded(*array)
    return facts_fingerprint(model, lines, arrays)


def _encoded(array: mx.array) -> str:
    return base64.b64encode(np.asarray(array.view(mx.uint8)).tobytes()).decode()


def _decoded(dtype: str, text: str) -> mx.array:
    content = np.frombuffer(base64.b64decode(text), np.uint8)
    return mx.array(content).view(getattr(mx, dtype.rpartition(".")[2]))
