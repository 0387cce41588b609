"""Peak memory stays near one layer, whatever the model's size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from synthetic import make_model, write_huggingface

MIB = 1 << 20
# Prints the peak of Python's and numpy's allocations during an export, and how far the process's peak grew.
MEASURE = """
import sys, tracemalloc
from reasoning_rpc_export.cli import main
import reasoning_rpc_export.export  # its modules are not part of the measurement
def resident(): # unlike ru_maxrss, not the peak of the process that started this one
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = resident()
if sys.argv[1] == "traced": tracemalloc.start()
assert main(sys.argv[2:]) == 0
print(tracemalloc.get_traced_memory()[1] if sys.argv[1] == "traced" else resident() - before)
"""


@pytest.fixture(scope="module")
def large_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, int]:
    """A folder of 16-bit weights, its size as float32, and the size of one layer as float32."""
    rng = np.random.default_rng(0)  # the values do not matter here
    shape = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 20, "vocab_size": 40000}
    model = make_model(rng, "llama", **shape)
    folder = write_huggingface(model, tmp_path_factory.mktemp("large") / "model", "BF16", shards=2)
    layer = sum(weight.nbytes for name, weight in model.weights.items() if ".layers.0." in name)
    return folder, sum(weight.nbytes for weight in model.weights.values()), layer


@pytest.mark.parametrize("method", ["traced", "resident"])
@pytest.mark.parametrize(("weights", "flavour"), [("fp32", "portable"), ("int4", "cached")])
def test_peak_memory(weights: str, flavour: str, method: str, large_model: tuple[Path, int, int], tmp_path: Path):
    folder, total, layer = large_model
    arguments = [method, folder, tmp_path / "out", "--weights", weights, "--flavour", flavour]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=True, timeout=120
    )
    peak = int(done.stdout)
    # Besides the layer: a piece of 4M weights as float32, and what encoding it takes.
    bound = layer + 64 * MIB
    assert total > 3 * bound, "the model is too small to show anything"
    assert peak < bound, f"{peak / MIB:.0f} MiB for layers of {layer / MIB:.0f} and weights of {total / MIB:.0f} MiB"
