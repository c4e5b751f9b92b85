"""Heat maps of the states of a memory as one PNG file."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from mlx_deltamem.sessions.export.heat_png import states_png


def heat_png(heat_map: Mapping[str, object]) -> bytes:
    """Draw the states of a memory, one tile for each layer and head: blue is negative, red is positive.

    Args:
        heat_map: The result of `Service.heatmap`.
    """
    layers = heat_map.get("layers")
    states = [_state(layer) for layer in layers] if isinstance(layers, Sequence) else []
    return states_png(states)


def _state(layer: object) -> npt.NDArray[np.float64]:
    values = np.asarray(layer["values"] if isinstance(layer, Mapping) else [[0.0]], dtype=np.float64)
    return np.nan_to_num(np.atleast_2d(values))
