"""One model in several threads, each with its own stream."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import mlx.core as mx
import pytest

from mlx_deltamem import DeltaMemConfig, attach, make_prompt_cache, memory, read_only, reset_memory, set_memory
from tests.conftest import adapter, backbone
from tests.families import tiny_model

# The first use of a model, by four threads at once. It runs in a new process, because an error would end the process.
_FIRST_USE = f"""
import tools.openblas
import mlx.core as mx
import os
from threading import Barrier, Thread
from mlx_deltamem import load, make_prompt_cache
model, _ = load({backbone()!r}, adapter={adapter()!r})
barrier, results = Barrier(4), [None] * 4
def run(number):
    with mx.stream(mx.new_stream(mx.cpu)):
        cache = make_prompt_cache(model)
        barrier.wait()
        for token in range(20):
            logits = model(mx.array([[token]]), cache=cache)
        results[number] = logits.tolist()
threads = [Thread(target=run, args=(n,)) for n in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
# Skip the normal end of the process: MLX's streams of threads sometimes abort there, also without a memory.
os._exit(0 if results[0] is not None and all(result == results[0] for result in results) else 3)
"""


@pytest.mark.slow
def test_several_threads_may_be_the_first_to_use_a_model():
    for _ in range(4):
        result = subprocess.run([sys.executable, "-c", _FIRST_USE], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr


def in_a_thread(call):
    def run():
        with mx.stream(mx.new_stream(mx.cpu)):
            return call()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


def test_a_model_and_a_cache_may_go_to_another_thread():
    model = tiny_model("qwen3")
    attach(model, DeltaMemConfig(output_init="base_slice"))
    ids = mx.array([[1, 2, 3]])
    expected = model(ids).tolist()
    mx.eval(ids)
    caches = [make_prompt_cache(model) for _ in range(3)]
    set_memory(caches[1], {0: mx.zeros((1, 1, 8, 8))})
    reset_memory(caches[2])
    for cache in caches:
        assert in_a_thread(lambda cache=cache: model(ids, cache=cache).tolist()) == expected


def test_a_model_may_be_used_first_in_another_thread():
    """As in the server, whose thread uses a model that another one has loaded."""
    model = tiny_model("qwen3")
    mx.eval(model.parameters())
    attach(model, DeltaMemConfig(output_init="base_slice"))
    assert in_a_thread(lambda: mx.isfinite(model(mx.array([[1, 2, 3]]), cache=make_prompt_cache(model))).all().item())


def test_read_only_applies_to_one_thread():
    model = tiny_model("qwen3")
    attach(model, DeltaMemConfig())
    ids = mx.array([[1, 2, 3]])
    mx.eval(ids, model.parameters())
    barrier = Barrier(2)

    def run(only_reads: bool) -> bool:
        with mx.stream(mx.new_stream(mx.cpu)):
            cache = make_prompt_cache(model)
            if only_reads:
                with read_only(model):
                    barrier.wait()
                    model(ids, cache=cache)
                    barrier.wait()
            else:
                barrier.wait()
                model(ids, cache=cache)
                barrier.wait()
            return memory(cache)[0].any().item()

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, [True, False])) == [False, True]
    cache = make_prompt_cache(model)
    model(ids, cache=cache)
    assert memory(cache)[0].any()
