"""Fuzz the readers of files: `python -m tests.fuzz.run --seconds 30 [--target NAME] [--seed 0]`.

Each target gets mutations of its seeds (`tests/fuzz/seeds/`) for this long. A finding is an error that is not one line
of a ValueError or OSError, more than 5 seconds of the processor or 60 by the clock, or 256 MB of memory. Its input
becomes a seed `found-*`, and the exit code is 1. After a native crash, the last input is in the folder that is printed
at the start.
"""

import tools.openblas  # noqa: F401, I001  (before anything that imports MLX)

import argparse
import faulthandler
import hashlib
import resource
import signal
import sys
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType

from tests.fuzz.mutate import mutated
from tests.fuzz.targets import SEEDS, TARGETS, Target, folder, release, seeds_of

# Of the processor: another program may keep it busy. A reader that waits for something has the longer limit.
MOST_SECONDS = 5.0
_LONGEST_WAIT = 60.0
MOST_BYTES = 256 << 20


class TooSlow(BaseException):
    """An input took too long. It is no Exception, so that no reader catches it."""


@dataclass
class Outcome:
    """The results of the inputs of a target.

    Attributes:
        inputs: The number of inputs.
        slowest: The seconds of the processor that the slowest input took.
        slowest_digest: The first digits of that input's SHA-256.
        growth: The growth of the largest memory of the process, in bytes.
        findings: For each kind of finding, its description and the first input.
    """

    inputs: int = 0
    slowest: float = 0.0
    slowest_digest: str = ""
    growth: int = 0
    findings: dict[str, tuple[str, bytes]] = field(default_factory=dict)


def fuzz(name: str, seed: int = 0, seconds: float = 30.0, inputs: int | None = None) -> Outcome:
    """Try the seeds of a target and then mutations of them, for some seconds or for a number of inputs."""
    target, seeds, random, outcome = TARGETS[name], seeds_of(name), Random(f"{name} {seed}"), Outcome()
    handlers = {number: signal.signal(number, _stop) for number in (signal.SIGPROF, signal.SIGALRM)}
    end = time.monotonic() + seconds
    try:
        for data in seeds:
            _try(target, data, outcome)
        while outcome.inputs < inputs if inputs is not None else time.monotonic() < end:
            _try(target, mutated(random.choice(seeds), random), outcome)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return outcome


def _try(target: Target, data: bytes, outcome: Outcome) -> None:
    before, began = _peak(), time.process_time()
    kind = ""
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, _LONGEST_WAIT)
    try:
        target(data)
    except TooSlow:
        kind = description = f"more than {MOST_SECONDS} s of the processor, or {_LONGEST_WAIT} s"
    except Exception as error:
        places = traceback.extract_tb(error.__traceback__)
        own = [place for place in places if "mlx_deltamem" in place.filename] or places
        kind = f"{type(error).__name__} in {Path(own[-1].filename).name}:{own[-1].name}"
        description = f"{kind}: {str(error)[:300]!r}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    took, grown = time.process_time() - began, _peak() - before
    release()
    if grown > MOST_BYTES:
        kind = description = f"{grown >> 20} MB of memory"
    outcome.inputs += 1
    outcome.growth += grown
    if took > outcome.slowest:
        outcome.slowest, outcome.slowest_digest = took, hashlib.sha256(data).hexdigest()[:12]
    if kind and (kind not in outcome.findings or len(data) < len(outcome.findings[kind][1])):
        outcome.findings[kind] = description, data


def _peak() -> int:
    """The largest memory of the process so far, in bytes."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used << 10


def _stop(signum: int, frame: FrameType | None) -> None:
    raise TooSlow


def keep(name: str, outcome: Outcome) -> list[Path]:
    """Write the inputs of findings as new seeds, and return their paths."""
    paths = []
    for _, data in outcome.findings.values():
        (SEEDS / name).mkdir(exist_ok=True)
        path = SEEDS / name / f"found-{hashlib.sha256(data).hexdigest()[:12]}"
        path.write_bytes(data)
        paths.append(path)
    return paths


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__, allow_abbrev=False)
    parser.add_argument("--seconds", type=float, default=30.0, help="The time for each target (default: 30).")
    parser.add_argument("--inputs", type=int, help="The number of inputs for each target, instead of a time.")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="Only this target; may be repeated.")
    parser.add_argument("--seed", type=int, default=0, help="The seed of the mutations (default: 0).")
    args = parser.parse_args()
    faulthandler.enable()
    warnings.simplefilter("ignore")
    print(f"Inputs are in {folder()}.", flush=True)
    found = 0
    for name in args.target or TARGETS:
        outcome = fuzz(name, args.seed, args.seconds, args.inputs)
        found += len(outcome.findings)
        print(
            f"{name}: {outcome.inputs:,} inputs, slowest {outcome.slowest:.2f} s ({outcome.slowest_digest}), memory "
            f"+{outcome.growth >> 20} MB, {len(outcome.findings)} findings",
            flush=True,
        )
        for (description, data), path in zip(outcome.findings.values(), keep(name, outcome), strict=True):
            print(f"  {description}\n    {path} ({len(data):,} bytes)", flush=True)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
