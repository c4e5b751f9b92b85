"""Tiny training runs: random tokens on random models, and short chats on the golden backbone."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_deltamem import DeltaMemConfig, attach
from mlx_deltamem.sessions.text.segments import Segments
from mlx_deltamem.training.episode import Episode, Question
from mlx_deltamem.training.run import Run
from mlx_deltamem.training.settings import Reporting, Schedule, Settings
from mlx_deltamem.training.terms import LossTerms
from tests.families import tiny_model

CONFIG = DeltaMemConfig(rank=4, delta_heads=("q", "o"), output_init="base_slice_fixed")
NAMES = ("Anna", "Omar", "Lena", "Ravi", "Eva.", "Tom.")


def toy_episodes(count: int, seed: int = 0, history: int = 8) -> list[Episode]:
    """Episodes of random tokens with one length, so that few steps are compiled."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        told, asked = random.integers(3, 64, history).tolist(), random.integers(3, 64, 8).tolist()
        made.append(Episode(Segments(told, [0] * history, [0] * history), (Question(asked, 5, (5, 7)),)))
    return made


def toy_model(config: DeltaMemConfig = CONFIG, bits: int | None = None, family: str = "llama") -> nn.Module:
    model = tiny_model(family, bits)
    mx.random.seed(5)
    attach(model, config)
    return model


def toy_run(folder: Path, model: nn.Module | None = None, **options: object) -> Run:
    """A run of 12 steps of 2 episodes. `options` are fields of Schedule and Reporting, and `terms` of the loss."""
    folder.mkdir(exist_ok=True)
    terms = options.pop("terms", LossTerms(sparsity=0.0))
    schedule = {name: value for name, value in options.items() if name in Schedule.__dataclass_fields__}
    reporting = {name: value for name, value in options.items() if name in Reporting.__dataclass_fields__}
    assert len(schedule) + len(reporting) == len(options)
    settings = Settings(
        "tiny",
        "toy",
        terms=terms,
        schedule=replace(Schedule(batch_size=2, iters=12, learning_rate=1e-2), **schedule),
    )
    reports = replace(Reporting(steps_per_report=3, steps_per_eval=5, save_every=4), **reporting)
    return Run(model or toy_model(), settings, reports, folder)


def weights_of(model: nn.Module) -> dict[str, mx.array]:
    """The adapter's weights."""
    return {name: weight for name, weight in tree_flatten(model.parameters()) if ".delta_mem." in name}


def frozen_of(model: nn.Module) -> dict[str, mx.array]:
    """All weights except the adapter's."""
    return {name: weight for name, weight in tree_flatten(model.parameters()) if ".delta_mem." not in name}


def same(one: dict[str, mx.array], other: dict[str, mx.array]) -> bool:
    """Whether arrays have the same names, dtypes and bits."""
    if one.keys() != other.keys():
        return False
    return all(one[name].dtype == other[name].dtype and mx.array_equal(one[name], other[name]) for name in one)


class Watched(list):
    """Episodes that call `then` when one of them is taken, after `count` others."""

    def __init__(self, episodes: list[Episode], count: int, then: Callable[[], None]):
        super().__init__(episodes)
        self.left = count
        self.then = then

    def __getitem__(self, index: int) -> Episode:
        self.left -= 1
        if self.left == -1:
            self.then()
        return super().__getitem__(index)


def write_chats(folder: Path, train: int = 12, valid: int = 3) -> Path:
    """Write a data folder of chats that tell a name and ask for it, with one length."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count, mark in (("train", train, "ab"), ("valid", valid, "cd")):
        rows = [_chat(f"{NAMES[index % len(NAMES)]}{mark[index % 2]}{index % 7}") for index in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _chat(name: str) -> dict[str, object]:
    said = (("user", f"I am {name}."), ("assistant", "Hi."), ("user", "Who?"), ("assistant", name))
    return {"messages": [{"role": role, "content": content} for role, content in said], "value": name}
