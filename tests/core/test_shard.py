"""Models split over two processes that communicate over loopback (MLX's ring)."""

import json
import os
import subprocess
import sys

import pytest

from tests.ranks.launched import free_ports

_SCRIPT = """
import sys
import tools.openblas
import mlx.core as mx
from mlx_deltamem import attach
from mlx_deltamem import memory
from mlx_deltamem import DeltaMemConfig, make_prompt_cache
from tests.conftest import randomise
from tests.families import tiny_model

family, order = sys.argv[1:]
group = mx.distributed.init(strict=True, backend="ring")
ids = mx.array([[5, 9, 33, 2, 17, 8, 60, 11, 3]])

def attached(model):
    attach(model, DeltaMemConfig())
    mx.random.seed(3)
    randomise(model, 0.15)

whole = tiny_model(family)
attached(whole)
expected_cache = make_prompt_cache(whole)
expected = whole(ids, cache=expected_cache)
model = tiny_model(family)
if order == "attach-shard":
    attached(model)
model.shard(group)
if order == "shard-attach":
    attached(model)
cache = make_prompt_cache(model)
logits = mx.concatenate([model(ids[:, :5], cache=cache), model(ids[:, 5:], cache=cache)], axis=1)
assert mx.abs(logits - expected).max() <= 1e-4, mx.abs(logits - expected).max()
for layer, state in memory(expected_cache).items():
    assert mx.abs(memory(cache)[layer] - state).max() <= 1e-4
"""


@pytest.mark.slow
@pytest.mark.parametrize("order", ["attach-shard", "shard-attach"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_sharded_model_equals_the_whole_one(family, order, tmp_path):
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(2)]))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, family, order],
            env=os.environ | {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
