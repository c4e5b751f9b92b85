import mlx.core as mx
import pytest
from mlx_lm.models import cache as mlx_lm_cache

from mlx_deltamem.history import RotatingKVCache, go_back, mark, mark_at, parse_history, with_exact_windows
from tests.conftest import distance


@pytest.mark.parametrize(("given", "expected"), [("full", "full"), ("none", "none"), (7, 7), ("12", 12)])
def test_histories(given, expected):
    assert parse_history(given) == expected


@pytest.mark.parametrize("given", ["some", "", 0, -3, "0", "-1", "1.5", 1.5, True, None, "\u00b2"])
def test_what_is_no_history(given):
    with pytest.raises(ValueError, match="expected 'full', 'none' or a number of tokens >= 1"):
        parse_history(given)


def keys(start: int, count: int) -> mx.array:
    """Keys that tell their own position."""
    return mx.broadcast_to(mx.arange(start, start + count, dtype=mx.float32)[None, None, :, None], (1, 1, count, 4))


@pytest.mark.parametrize("cut", [[1] * 20, [20], [3, 1, 9, 7], [12, 1, 1, 1, 5], [5, 15]])
@pytest.mark.parametrize("keep", [0, 2])
def test_every_token_sees_the_first_and_the_last_ones_however_they_come(cut, keep):
    """Twenty tokens through a window of 5 after `keep`, and what each of them may attend to."""
    cache = RotatingKVCache(max_size=keep + 5, keep=keep)
    done = 0
    for count in cut:
        mask = cache.make_mask(count)
        held, _ = cache.update_and_fetch(keys(done, count), keys(done, count))
        positions = held[0, 0, :, 0].astype(mx.int32).tolist()
        for index in range(count):
            if mask is None:
                visible = positions
            elif isinstance(mask, str):
                visible = positions[: len(positions) - count + index + 1]
            else:
                visible = [p for p, seen in zip(positions, mask[index].tolist(), strict=True) if seen]
            query = done + index
            assert sorted(visible) == [p for p in range(query + 1) if p < keep or p > query - 5]
        done += count


def test_the_window_keeps_its_meaning_through_mlx_lms_files(tmp_path):
    cache = RotatingKVCache(max_size=7, keep=2)
    cache.update_and_fetch(keys(0, 9), keys(0, 9))
    mlx_lm_cache.save_prompt_cache(str(tmp_path / "c.safetensors"), [cache])
    loaded = mlx_lm_cache.load_prompt_cache(str(tmp_path / "c.safetensors"))
    (again,) = with_exact_windows(loaded)
    assert type(again) is RotatingKVCache
    assert distance(again.make_mask(4), cache.make_mask(4)) == 0


def test_going_back():
    plain, window, memory = mlx_lm_cache.KVCache(), RotatingKVCache(max_size=4), mlx_lm_cache.ArraysCache(1)
    cache = [plain, window, memory]

    def run(start: int, count: int) -> None:
        for entry in (plain if cache[0] is plain else cache[0], cache[1]):
            entry.update_and_fetch(keys(start, count), keys(start, count))

    run(0, 3)
    place = mark(cache)
    run(3, 1)
    run(4, 1)
    assert go_back(cache, place)
    assert [entry.offset for entry in cache[:2]] == [3, 3]
    run(3, 1)
    assert cache[1].keys_and_values()[0][0, 0, :, 0].tolist() == [0, 1, 2, 3]
    # A mark serves more than once.
    assert go_back(cache, place)
    assert [entry.offset for entry in cache[:2]] == [3, 3]
    assert not go_back(cache, place.without_copies())
    assert not go_back(cache, None)
    assert [entry.offset for entry in cache[:2]] == [3, 3]
    assert not go_back([plain, memory], mark_at([plain, memory], 99))
