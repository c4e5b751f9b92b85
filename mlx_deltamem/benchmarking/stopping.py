"""When a measurement has enough rounds: a sequential rule for machines that also do other work."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mlx_deltamem.benchmarking.models import FROZEN, FROZEN_AGAIN
from mlx_deltamem.benchmarking.paired import Ratio, Sample, compare


@dataclass(frozen=True)
class StoppingRule:
    """Stops where the ratio of a variant to the frozen backbone is known well enough, or where the time is up.

    The ratio is known well enough where its noise (`Ratio.noise`) is at most `width`, or where it differs from the
    target by more than twice its noise. Twice, because a rule that looks often also finds what is only chance. It looks
    after `least` rounds, and then each time that there are half as many again.

    Attributes:
        variant: The variant of the ratio.
        quantity: The attribute of `Sample` that is compared.
        target: The ratio that is allowed; None: there is none.
        least: The number of rounds before the first look, at least 3.
        seconds: No round begins after this time, once there are `least` rounds.
        width: The noise of a ratio that is precise enough.
    """

    variant: str
    quantity: str
    target: float | None
    least: int = 8
    seconds: float = 60.0
    width: float = 0.004

    def begin(self, clock: Callable[[], float] = time.perf_counter) -> Callable[[Mapping[str, list[Sample]]], bool]:
        """Start the time. The result says, from the samples so far, whether there are enough.

        Args:
            clock: Returns the time in seconds.
        """
        start, next_look = clock(), self.least

        def is_enough(samples: Mapping[str, list[Sample]]) -> bool:
            nonlocal next_look
            rounds = len(samples[FROZEN])
            if rounds < self.least:
                return False
            if clock() - start >= self.seconds:
                return True
            if rounds < next_look:
                return False
            next_look = rounds + max(1, rounds // 2)
            names = (self.variant, FROZEN, FROZEN_AGAIN)
            return self.is_known(compare(*([getattr(each, self.quantity) for each in samples[name]] for name in names)))

        return is_enough

    def is_known(self, ratio: Ratio) -> bool:
        """Whether a ratio is known well enough."""
        if ratio.noise <= self.width:
            return True
        return self.target is not None and abs(ratio.quartiles.median - self.target) > 2 * ratio.noise
