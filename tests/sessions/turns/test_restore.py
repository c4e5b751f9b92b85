import mlx.core as mx
from mlx_lm.models.cache import ArraysCache, KVCache, RotatingKVCache

from mlx_deltamem.sessions.turns.restore import go_back, mark, mark_at


def keys(start: int, count: int) -> mx.array:
    """Keys that hold their own position."""
    return mx.broadcast_to(mx.arange(start, start + count, dtype=mx.float32)[None, None, :, None], (1, 1, count, 4))


def test_going_back():
    plain, window, memory = KVCache(), RotatingKVCache(max_size=4), ArraysCache(1)
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
    assert sorted(cache[1].keys[0, 0, :, 0].tolist()) == [0, 1, 2, 3]
    # A mark can be used again.
    assert go_back(cache, place)
    assert [entry.offset for entry in cache[:2]] == [3, 3]
    assert not go_back(cache, place.without_copies())
    assert not go_back(cache, None)
    assert [entry.offset for entry in cache[:2]] == [3, 3]
    assert not go_back([plain, memory], mark_at([plain, memory], 99))
