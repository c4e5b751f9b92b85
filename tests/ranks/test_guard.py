"""A rank that is killed ends the others, also where these are stuck in a call."""

import signal
import time

import pytest

from tests.ranks.launched import Ranks


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count", "killed"), [("lock", 3, 2), ("mlx", 2, 1), ("python", 3, 2)])
def test_a_killed_rank_ends_one_that_is_stuck(kind, count, killed):
    ranks = Ranks(count, "tests.ranks.stuck", kind)
    ranks.read_until("joined")
    ranks.processes[killed].send_signal(signal.SIGKILL)
    begun = time.monotonic()
    ended = ranks.wait()
    assert time.monotonic() - begun < 30
    first, *others = [each for rank, each in enumerate(ended) if rank != killed]
    if kind == "lock":
        # No thread of the rank can print, or end it.
        assert first.code == -signal.SIGKILL
    elif kind == "python":
        assert first.code == 1
    assert first.code
    # They have it from rank 0, or from its guard, and do not say that rank 0 was the first one to be gone.
    assert [(each.code, each.err) for each in others] == [(1, "")] * len(others)
    lines = [line for line in first.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and lines[0].startswith(f"error: rank {killed} ("), first.err
    assert "Traceback" not in first.err
