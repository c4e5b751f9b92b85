"""The speed and the time left, with a clock that is given."""

from mlx_deltamem.show.progress import TimeLeft


def test_the_time_left_follows_from_the_speed_so_far():
    seconds = iter([100.0, 100.0, 102.0, 104.0])
    left = TimeLeft(lambda: next(seconds))
    assert left.after(0, 1_000_000) == ""
    assert left.after(2048, 1_000_000) == ", 1,024 tokens/s, 0:16:15 left"
    assert left.after(20_480_000, 100_000_000) == ", 5,120,000 tokens/s, 0:00:16 left"


def test_tokens_that_were_read_earlier_are_not_speed():
    seconds = iter([0.0, 0.0, 10.0])
    left = TimeLeft(lambda: next(seconds))
    assert left.after(500_000, 1_000_000) == ""
    assert left.after(501_000, 1_000_000) == ", 100 tokens/s, 1:23:10 left"
