"""Ranks whose clocks differ would write different dates into their prompts."""

import re
from datetime import UTC, datetime, timedelta, timezone

import pytest

from mlx_deltamem.ranks.clocks import check_clocks
from mlx_deltamem.ranks.world import World
from tests.ranks.together import together

_NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)


def _checked(worlds: list[World], times: list[datetime]) -> list[object]:
    return together(worlds, lambda each: check_clocks(each, lambda: times[each.rank]))


def test_clocks_that_show_the_same_time_are_taken(ranks):
    worlds, _ = ranks
    assert _checked(worlds, [_NOON, _NOON + timedelta(seconds=2), _NOON - timedelta(seconds=50)]) == [None] * 3


@pytest.mark.parametrize(
    ("time", "shown"),
    [
        (_NOON + timedelta(days=1), r"2026-11-30 12:00 \+0000"),
        # The same moment, with another date perhaps.
        (_NOON.astimezone(timezone(timedelta(hours=13))), r"2026-11-30 01:00 \+1300"),
    ],
)
def test_clocks_that_differ_are_refused_in_all_ranks(ranks, time, shown):
    worlds, _ = ranks
    found = _checked(worlds, [_NOON, _NOON, time])
    assert len(set(found)) == 1
    kind, text = found[0]
    assert kind is ValueError
    assert re.match(f"the clock of rank 2 shows {shown}, and that of rank 0", text)


def test_a_rank_alone_has_one_clock():
    check_clocks(World(0, 1))
