"""The benchmark's long caches, made out of a short sequence, are ones that the library takes and decodes with."""

import sys

import pytest
from conftest import MODELS, ROOT

sys.path.insert(0, str(ROOT / "tests/peers"))

from peers.engines.ours import Engine  # noqa: E402
from peers.schedule import Schedule  # noqa: E402

BLOCK, LAYERS, KV_HEADS, HEAD_DIM = 64, 30, 3, 64
BYTES = {"f32": 4 * HEAD_DIM, "f16": 2 * HEAD_DIM, "bf16": 2 * HEAD_DIM, "i8": HEAD_DIM + 4}
RPC = {"policy": "rpc", "interval": 128, "window": 8}


@pytest.mark.parametrize("budget", [None, {"ratio": 4}, {"entries": 200}])
@pytest.mark.parametrize("cache", BYTES)
def test_a_stretched_sequence_is_one_of_the_library(cache, budget):
    settings = {"cache": cache} | (RPC | budget if budget else {})
    engine = Engine(str(MODELS / "smollm2-int4"), 1, **settings)
    given, generated, steps = 300, 900, 3
    engine.fill(2, given + generated, **({"given": given} if budget else {}))
    for _ in range(steps):
        engine.step()
    held = given + generated + steps
    if budget:
        schedule = Schedule(128, 8, **budget)
        held = given + schedule.held(generated + steps)
    stats = engine.stats()
    # Keys and values with their scales, and a position.
    entry = LAYERS * KV_HEADS * (2 * BYTES[cache] + 4)
    assert stats["cache_bytes"] == -(-held // BLOCK) * BLOCK * entry
    assert 0 < stats["attention_seconds"] < stats["step_seconds"]
    assert 0 < stats["product_seconds"] < stats["step_seconds"]
    engine.clear()
