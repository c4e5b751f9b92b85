"""Reports of any size with random numbers, for tests of figures."""

import numpy as np

from mlx_deltamem.adapters.fingerprint import Origin
from mlx_deltamem.inspection.session import SessionReport, TurnReport
from mlx_deltamem.inspection.states import state_reports
from mlx_deltamem.inspection.trace import Trace


def some_states(layers: int, heads: int = 1, rank: int = 8) -> dict[int, np.ndarray]:
    random = np.random.default_rng(0)
    return {layer: random.normal(size=(heads, rank, rank)).astype(np.float32) for layer in range(layers)}


def a_trace(texts: list[str], layers: int = 3, heads: int = 1, rank: int = 8, corrects: bool = True) -> Trace:
    random = np.random.default_rng(0)
    states = some_states(layers, heads, rank)
    write = random.uniform(0.1, 0.3, (layers, len(texts))).astype(np.float32)
    places = list(range(1, len(texts) + 1))[:: max(1, len(texts) // 64)]
    return Trace(
        tokens=list(range(1000, 1000 + len(texts))),
        texts=texts,
        layers=list(states),
        write=write,
        keep=1 - write,
        correction=random.uniform(0.0, 0.1, write.shape).astype(np.float32) if corrects else None,
        places=places,
        norms=random.uniform(0.5, 2.0, (layers, len(places))).astype(np.float32),
        final=state_reports(states),
        states=states,
    )


def a_session(turns: int, layers: int = 3, heads: int = 1, rank: int = 8) -> SessionReport:
    random = np.random.default_rng(0)
    states = some_states(layers, heads, rank)

    def drift() -> dict[int, float]:
        return dict(enumerate(random.uniform(0.2, 0.9, layers).tolist()))

    def turn(number: int) -> TurnReport:
        return TurnReport(
            20, 5, 2, "none" if number % 7 == 3 else "all", False, drift(), drift(), 0.5, 0.5, 1.0, None, None
        )

    return SessionReport(
        kind="session",
        file="chat.safetensors",
        file_id="0" * 32,
        bytes=1000,
        origin=Origin("a backbone", "a", "b", "c"),
        history="none",
        write="all",
        template_options={},
        keeps_text=False,
        has_system_prompt=False,
        system=None,
        tokens=27 * turns,
        turns=[turn(number) for number in range(turns)],
        state_shape=[heads, rank, rank],
        state_bytes=4 * layers * heads * rank**2,
        states=state_reports(states),
        arrays=states,
    )
