"""Session folders and state files in the formats of other implementations."""

import json
import pickle
from pathlib import Path

import mlx.core as mx

from mlx_deltamem.adapters.torch.writer import save_torch
from tests.conftest import golden

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Où est la carte?"},
    {"role": "assistant", "content": "日本語 🙂"},
]


def states(heads: int = 1, rank: int = 4, layers: tuple[int, ...] = (0, 1, 2)) -> dict[int, mx.array]:
    return {layer: mx.random.normal((1, heads, rank, rank)) for layer in layers}


def reference_folder(
    folder: Path,
    tensors: dict[str, mx.array] | None = None,
    messages: object = MESSAGES,
    ids: object = (1, 2, 3),
    **more: object,
) -> Path:
    """Write a session folder of the reference. Unpickling its keys and values would create the folder `pwned`."""
    folder.mkdir()
    session = {"messages": messages, "processed_input_ids": list(ids) if isinstance(ids, tuple) else ids}
    (folder / "session.json").write_text(json.dumps(session | more, ensure_ascii=False, indent=2), encoding="utf-8")
    tensors = named(states()) if tensors is None else tensors
    save_torch(folder / "delta_state.pt", tensors)
    (folder / "past_key_values.pt").write_bytes(pickle.dumps(_Attack(folder / "pwned")))
    return folder


def named(by_layer: dict[int, mx.array], dtype: mx.Dtype = mx.float32) -> dict[str, mx.array]:
    """Return states with the names and shapes of the reference."""
    squeezed = {layer: state[:, 0] if state.shape[1] == 1 else state for layer, state in by_layer.items()}
    return {f"model.layers.{layer}.self_attn": state.astype(dtype) for layer, state in squeezed.items()}


def golden_chat(name: str) -> tuple[dict, dict[str, mx.array]]:
    """Return the description of a golden chat, and its states after the last turn under the reference's names."""
    info, data = golden("sessions", name)
    start = f"turn{len(info['turns']) - 1}.state."
    found = {key.removeprefix(start): state for key, state in data.items() if key.startswith(start)}
    return info, {f"model.layers.{layer}.self_attn": state for layer, state in sorted(found.items())}


def same(one: dict[int, mx.array], other: dict[int, mx.array]) -> bool:
    """Return True if two memories have the same layers, shapes, dtypes and numbers."""
    return one.keys() == other.keys() and all(
        (a.shape, a.dtype) == (b.shape, b.dtype) and mx.array_equal(a, b)
        for a, b in ((state, other[layer]) for layer, state in one.items())
    )


class _Attack:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple:
        return Path.mkdir, (self.folder,)
