"""Tries the fused kernels before they are used."""

import warnings
from collections.abc import Callable, Sequence

import mlx.core as mx


class Trial:
    """Compares kernels with MLX's own operations, and warns once if a kernel cannot be used."""

    def __init__(self) -> None:
        self._warned = False

    def passes(
        self, fused: Callable[[], Sequence[mx.array]], expected: Callable[[], Sequence[mx.array]], tolerance: float
    ) -> bool:
        """Whether kernels build, run and give the expected results.

        It may be called within a function transformation, because its arrays do not depend on the transformed arrays.

        Args:
            fused, expected: Functions that return the float arrays to compare.
            tolerance: The largest difference allowed, relative to the largest expected number or to 1, whichever is
                larger.
        """
        try:
            found = fused()
            mx.eval(found)
            # On the CPU, because a GPU may round the inputs of matrix products (TF32).
            with mx.stream(mx.cpu):
                numbers = zip(found, expected(), strict=True)
                pairs = [(float(mx.abs(x - y).max()), float(mx.abs(y).max())) for x, y in numbers]
        # A compiler or a driver may raise any exception.
        except Exception as error:
            return self._fail(" ".join(str(error).split())[:300])
        for difference, largest in pairs:
            # Not `>`, which is False for NaN.
            if not difference <= tolerance * max(1.0, largest):
                return self._fail(f"its results differ from those of MLX operations by {difference:.3g}")
        return True

    def _fail(self, reason: str) -> bool:
        if not self._warned:
            self._warned = True
            message = f"the fused kernel cannot be used here ({reason}); using MLX operations, which are slower"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        return False


trial = Trial()
