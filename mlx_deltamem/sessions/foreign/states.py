"""The memory in foreign files: names and shapes of states, and the `.npz` file of the other MLX port.

The other MLX port saves the states alone, as arrays `layer_N` of shape `[1, r, r]`. The reference saves tensors under
the names of its attention modules.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import mlx.core as mx
import numpy as np

from mlx_deltamem.adapters.npz import load_npz
from mlx_deltamem.adapters.untrusted import Shapes
from mlx_deltamem.core.adapter import layer_list
from mlx_deltamem.files.atomic import new_file

STATES_SUFFIX = ".npz"

# At most four digits: Python refuses to read numbers with very many.
_ARRAY = re.compile(r"layer_(?P<layer>[0-9]{1,4})")
_EXPECTED_ARRAYS = "expected the states of the other MLX port, arrays `layer_N`"
_FEW_NAMES = 3


def read_sidecar_states(path: Path) -> dict[int, mx.array]:
    """Read the states that the other MLX port saved (`delta_state.npz`).

    Returns:
        The states by layer index, `[1, H, r, r]` float32.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or holds anything else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; {_EXPECTED_ARRAYS}")

    def check(shapes: Shapes) -> None:
        if not shapes:
            raise ValueError(f"{path} holds no arrays; {_EXPECTED_ARRAYS}")
        layer_indices(path, shapes, _ARRAY, _EXPECTED_ARRAYS)

    return states_by_layer(path, load_npz(path, check), _ARRAY, _EXPECTED_ARRAYS)


def write_sidecar_states(path: Path, states: Mapping[int, mx.array]) -> None:
    """Write states for the other MLX port, as float32. The file is written whole or not at all.

    Args:
        path: The `.npz` file to make or replace. Only its owner may read it.
        states: By layer index, `[1, 1, r, r]` (or `[1, r, r]`).

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: The name has another ending; there are no states; there is more than one state head, or a key
            shift, which that port does not know; or the states are not those of one chat.
        OSError: The file cannot be written. An existing file is left unchanged.
    """
    if path.suffix != STATES_SUFFIX:
        raise ValueError(f"{path} does not end in {STATES_SUFFIX}; name a file of states so")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to save states in")
    states = checked_states(path, states)
    if not states:
        raise ValueError(f"{path}: the chat has no memory yet, and the other MLX port has no file for that")
    heads = next(iter(states.values())).shape[1]
    if heads != 1:
        raise ValueError(
            f"{path}: the memory has {heads} state heads and the other MLX port knows one; save it for the reference"
        )
    arrays = {f"layer_{layer}": np.array(state[:, 0]) for layer, state in states.items()}
    # numpy's types take every array's name for the name of an option.
    savez = cast(Callable[..., None], np.savez)
    with new_file(path, mode=0o600) as temporary, temporary.open("wb") as file:
        savez(file, **arrays)


def states_by_layer(
    path: Path, arrays: Mapping[str, mx.array], key: re.Pattern[str], expected: str
) -> dict[int, mx.array]:
    """Convert the arrays of a file to states `[1, H, r, r]` float32, by layer index in ascending order.

    Args:
        path: The file, for messages.
        arrays: Its arrays by name, `[1, r, r]` or `[1, H, r, r]` of any float type.
        key: A pattern that matches their names. Its group `layer` is the layer index.
        expected: What the file should be, for messages.

    Raises:
        ValueError: They are not the states of one chat.
    """
    layers = layer_indices(path, {name: array.shape for name, array in arrays.items()}, key, expected)
    return checked_states(
        path, {layer: arrays[name] for name, layer in sorted(layers.items(), key=lambda pair: pair[1])}
    )


def layer_indices(path: Path, shapes: Shapes, key: re.Pattern[str], expected: str) -> dict[str, int]:
    """The layer index of each array, from its name. The arguments are as in `states_by_layer`.

    Raises:
        ValueError: A name does not match, two arrays are of one layer, or a shape is not that of a state.
    """
    matches = {name: match for name in shapes if (match := key.fullmatch(name))}
    others = [name for name in shapes if name not in matches]
    if others:
        more = ", ..." if len(others) > _FEW_NAMES else ""
        raise ValueError(f"{path} holds {', '.join(map(_quoted, others[:_FEW_NAMES]))}{more}; {expected} alone")
    layers = {name: int(match["layer"]) for name, match in matches.items()}
    if len(set(layers.values())) < len(layers):
        raise ValueError(f"{path} has two states for one layer; expected one for each")
    _check_shapes(path, {layer: shapes[name] for name, layer in layers.items()})
    return layers


def checked_states(path: Path, states: Mapping[int, mx.array]) -> dict[int, mx.array]:
    """Convert states `[1, H, r, r]` or `[1, r, r]` of any float type to `[1, H, r, r]` float32.

    Args:
        path: The file that they are read from or written to, for messages.
        states: By layer index.

    Raises:
        ValueError: They are not the states of one chat, are of an adapter with a key shift, or are not finite.
    """
    _check_shapes(path, {layer: state.shape for layer, state in states.items()})
    broken = sorted(layer for layer, state in states.items() if not mx.isfinite(state).all())
    if broken:
        raise ValueError(
            f"{path}: the memory holds NaN or infinite values ({layer_list(broken)}); nothing can go on from it"
        )
    by_head = {layer: state[:, None] if state.ndim == 3 else state for layer, state in states.items()}
    return {layer: state.astype(mx.float32) for layer, state in by_head.items()}


def fitted_states(path: Path, states: Mapping[int, mx.array], shapes: Sequence[tuple[int, int, int]]) -> list[mx.array]:
    """Convert states from a file to the memory of a chat with a model.

    Args:
        path: The file, for messages.
        states: By layer index, `[1, H, r, r]`. If there are none, the memory is empty.
        shapes: The shapes of the model's states (`model.memory_layout.shapes`).

    Returns:
        A state for each layer of the model, `[1, H, r, r]` float32; `[1, 0, 0, 0]` for a layer without a memory.

    Raises:
        ValueError: The model's adapter has a key shift, other layers have a memory, or the shapes differ.
    """
    layers = [layer for layer, shape in enumerate(shapes) if shape[-1]]
    advice = "load it with the adapter it was made with"
    if states and any(shape[1] == shape[2] + 1 for shape in shapes):
        raise ValueError(
            f"{path} has square states, but this model's adapter has key_shift: its states have one more row; {advice}"
        )
    if states and sorted(states) != layers:
        raise ValueError(
            f"{path} has states for {layer_list(sorted(states))}, but this model has a memory in {layer_list(layers)}; "
            f"{advice}"
        )
    for layer, state in states.items():
        if state.shape[1:] != shapes[layer]:
            found, expected = (list(shape) for shape in (state.shape[1:], shapes[layer]))
            raise ValueError(f"{path} has states of shape {found}, but this model's are {expected}; {advice}")
    return [states[layer] if layer in states else mx.zeros((1, *shape)) for layer, shape in enumerate(shapes)]


def _check_shapes(path: Path, shapes: Mapping[int, tuple[int, ...]]) -> None:
    for layer, shape in shapes.items():
        if len(shape) in (3, 4) and 0 not in shape and shape[-2] == shape[-1] + 1:
            raise ValueError(
                f"{path}: the state of layer {layer} has shape {_shown(shape)}: it is of an adapter with key_shift, "
                "which other implementations do not have; save the chat to a session file instead"
            )
        if len(shape) not in (3, 4) or shape[-1] != shape[-2] or 0 in shape:
            raise ValueError(
                f"{path}: the state of layer {layer} has shape {_shown(shape)}; expected (1, r, r) or (1, H, r, r)"
            )
        if shape[0] != 1:
            raise ValueError(
                f"{path}: the state of layer {layer} is of {shape[0]} chats at once, shape {_shown(shape)}; expected "
                "one: save one row of them"
            )
    kinds = {shape[1:] for shape in shapes.values()}
    if len(kinds) > 1:
        listed = " and ".join(sorted(_shown((1, *shape)) for shape in kinds)[:2])
        raise ValueError(f"{path} has states of shapes {listed}; expected one shape in all layers")


def _quoted(name: str) -> str:
    return f"{name[:60]!r}"


def _shown(shape: Sequence[int]) -> str:
    listed = ", ".join(map(str, shape[:6]))
    return f"({listed}{', ...' if len(shape) > 6 else ''})"
