"""The work of `mlx_deltamem.convert`: it reads an adapter in any of four formats and writes it in another."""

import argparse
from dataclasses import replace
from pathlib import Path

import mlx.core as mx

from mlx_deltamem.adapters.card.card import provenance_card
from mlx_deltamem.adapters.card.folder import load_with_card, save_with_card
from mlx_deltamem.adapters.folder import NPZ_FILE, PLAIN_FILE, TORCH_FILE
from mlx_deltamem.adapters.publish import check_names
from mlx_deltamem.adapters.torch.writer import save_torch
from mlx_deltamem.cli.convert_session import convert_session
from mlx_deltamem.commands.upload import upload_folder
from mlx_deltamem.core.adapter import CARD_FILE, WEIGHTS_FILE, Adapter, changed, check_weights, dtype_name
from mlx_deltamem.core.config import CONFIG_FILE, OWN_FIELDS
from mlx_deltamem.core.shapes import inactive_parameters
from mlx_deltamem.files.atomic import check_absent, new_folder, user_path

_FORMATS = {
    WEIGHTS_FILE: "mlx_deltamem's own format",
    TORCH_FILE: "the PyTorch reference's format",
    NPZ_FILE: "the other MLX port's format",
    PLAIN_FILE: "a third MLX port's format",
}


def run(args: argparse.Namespace) -> None:
    """Do the work that the options of the command describe.

    Raises:
        FileNotFoundError: There is no such adapter or chat.
        ValueError: It is damaged, the target exists already, or the upload failed.
    """
    if args.upload_repo is not None:
        check_names(args.upload_repo, args.base_model)
    dtype = getattr(mx, args.dtype) if args.dtype else None
    if args.session is not None:
        print(convert_session(args.session[0], user_path(args.session[1]), args.to, dtype))
        return
    source, target = (args.torch_path, args.mlx_path) if args.to == "mlx" else (args.mlx_path, args.torch_path)
    target = user_path(target)
    adapter = convert(source, target, args.to, dtype)
    print(f"Read {source}: {adapter.file} ({_FORMATS[adapter.file]})")
    print(f"Wrote {target}: {adapter.parameters:,} parameters in {len(adapter.weights_by_layer())} layers")
    if args.upload_repo is not None:
        try:
            upload_folder(target, args)
        except (ValueError, OSError) as error:
            raise ValueError(f"{error} (the adapter is in {target}: go on with mlx_deltamem.upload)") from error


def convert(source: str, target: Path, to: str = "mlx", dtype: mx.Dtype | None = None) -> Adapter:
    """Read an adapter in any of the four formats and write it in another.

    Args:
        source: A folder or a Hub repo.
        target: The folder to create.
        to: `mlx`, or `torch` for the format of the reference.
        dtype: The type of the weights written; None keeps the type of each tensor.

    Returns:
        The adapter that was read.

    Raises:
        FileNotFoundError: There is no such adapter.
        ValueError: The adapter is damaged, `target` exists already, a weight is too large for `dtype`, or the reference
            does not know a field of the adapter's configuration.
    """
    check_absent(target)
    adapter = load_with_card(source)
    converted = adapter if dtype is None else _stored_as(adapter, dtype)
    if to == "mlx":
        save_with_card(converted, target)
        return adapter
    check_weights(converted)
    if missing := _missing_heads(converted):
        raise ValueError(
            f"{source} lacks {', '.join(missing)}, which the reference expects also where they have no effect; attach "
            "the adapter to its model, save current_adapter(model) with save_adapter, and convert that folder"
        )
    if own := [name for name in OWN_FIELDS if getattr(adapter.config, name)]:
        raise ValueError(f"{source} has {', '.join(own)}, which the reference does not know; use it with MLX only")
    with new_folder(target) as folder:
        (folder / CONFIG_FILE).write_text(adapter.config.to_json(), encoding="utf-8")
        save_torch(folder / TORCH_FILE, converted.weights)
        if (card := provenance_card(converted)) is not None:
            (folder / CARD_FILE).write_text(card, encoding="utf-8")
    return adapter


def _missing_heads(adapter: Adapter) -> list[str]:
    """The names of tensors that have no effect and are absent. Only the model shows their shapes."""
    layers = adapter.weights_by_layer().values()
    return sorted(name for name in inactive_parameters(adapter.config) if any(name not in each for each in layers))


def _stored_as(adapter: Adapter, dtype: mx.Dtype) -> Adapter:
    """Return an adapter with all weights in one type; its metadata name the change, if there is one."""
    if all(tensor.dtype == dtype for tensor in adapter.weights.values()):
        return adapter
    done = dtype_name(dtype) if "changed" in adapter.metadata else f"weights stored as {dtype_name(dtype)}"
    weights = {name: tensor.astype(dtype) for name, tensor in adapter.weights.items()}
    return replace(adapter, weights=weights, metadata={**adapter.metadata, "changed": changed(adapter.metadata, done)})
