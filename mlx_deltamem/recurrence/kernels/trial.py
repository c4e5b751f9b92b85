"""Tries fused kernels out before they are relied on."""

import warnings
from collections.abc import Callable, Sequence

import mlx.core as mx


class Trial:
    """Compares kernels with MLX's own operations, and warns the first time that one cannot be used."""

    def __init__(self) -> None:
        self._warned = False

    def passes(
        self, fused: Callable[[], Sequence[mx.array]], expected: Callable[[], Sequence[mx.array]], tolerance: float
    ) -> bool:
        """Whether kernels build, run, and give the expected results.

        It may be called within a function transformation, since its arrays do not depend on what is transformed.

        Args:
            fused, expected: Give the float arrays to compare.
            tolerance: The largest difference, as a share of the largest number expected, or of 1 if that is larger.
        """
        try:
            found = fused()
            mx.eval(found)
            # On the CPU, since products of matrices on a GPU may round their inputs (TF32).
            with mx.stream(mx.cpu):
                numbers = zip(found, expected(), strict=True)
                pairs = [(mx.abs(x - y).max().item(), mx.abs(y).max().item()) for x, y in numbers]
        # Whatever a compiler or a driver has to say.
        except Exception as error:
            return self._fail(" ".join(str(error).split())[:300])
        for difference, largest in pairs:
            if not difference <= tolerance * max(1.0, largest):
                return self._fail(f"its results are off by {difference:.3g}")
        return True

    def _fail(self, reason: str) -> bool:
        if not self._warned:
            self._warned = True
            message = f"the fused kernel cannot be used here ({reason}); going on with MLX operations, which are slower"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        return False


trial = Trial()
