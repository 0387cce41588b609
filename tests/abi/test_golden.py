"""The golden generations, token by token through the C ABI: ids, logits, cache lengths, kept sets.

Golden data: tests/golden, or RRPC_GOLDEN. Models: models/golden, or RRPC_MODELS with golden/ in it.
The library: target/release/libreasoning_rpc.so, or RRPC_LIBRARY.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
GOLDEN = pathlib.Path(os.environ.get("RRPC_GOLDEN", ROOT / "tests/golden")) / "generation"
MODELS = pathlib.Path(os.environ.get("RRPC_MODELS", ROOT / "models")) / "golden"
NAMES = ["qwen2_p32", "llama_p48_c8", "qwen2_group_p64_c2"]

# Both logits are float32 evaluations of the same model, up to 18.5 large. Against float64 the golden
# ones are off by up to 1.05e-4 and a plain numpy one by up to 2.23e-4: two may differ by the sum.
LOGIT_TOLERANCE = 3.3e-4


def decode(name: str, flavour: str, mode: str, simd: str, out: pathlib.Path) -> tuple[dict, np.ndarray]:
    """In a process of its own: the instruction set is chosen when an engine is opened."""
    model = MODELS / f"{name}-{flavour}"
    assert (model / "manifest.json").exists(), f"{model} is missing: run make test-models"
    command = [sys.executable, HERE / "golden_run.py", model, GOLDEN / name / "expected.json", mode, out]
    done = subprocess.run(command, env={**os.environ, "RRPC_SIMD": simd}, capture_output=True, text=True)
    if f"cannot run {simd}" in done.stderr:
        pytest.skip(f"not run: this CPU has no {simd}")
    assert done.returncode == 0, done.stderr
    data = np.load(out)
    found = json.loads(str(data["found"]))
    assert found["simd"] == simd
    return found, data["logits"]


def layers_of(expected: dict, mode: str) -> int:
    return 1 + max((record["layer"] for record in expected["results"][mode]["compressions"]), default=0)


def positions_of(expected: dict, mode: str) -> list[list[list[int]]]:
    """The kept sets as text positions. Golden sets count candidates: what was kept before, then what
    has left the window since."""
    prompt, interval = len(expected["prompt"]), expected["P"]
    past: dict[tuple[int, int], tuple[list[int], int]] = {}
    all_sets = []
    layers = layers_of(expected, mode)
    for index, record in enumerate(expected["results"][mode]["compressions"]):
        window_start = prompt + (index // layers + 1) * interval
        sets = []
        for one, kept in enumerate(record["kept"]):
            candidates, fresh = past.get((record["layer"], one), ([], prompt))
            candidates = [*candidates, *range(fresh, window_start)]
            positions = [candidates[entry] for entry in kept]
            past[record["layer"], one] = (positions, window_start)
            sets.append(positions)
        all_sets.append(sets)
    return all_sets


def check(name: str, flavour: str, mode: str, simd: str, out: pathlib.Path) -> None:
    expected = json.loads((GOLDEN / name / "expected.json").read_text())
    golden = expected["results"][mode]
    golden_logits = load_file(GOLDEN / name / "logits.safetensors")[f"logits_{mode}"]
    found, logits = decode(name, flavour, mode, simd, out)

    assert found["tokens"] == golden["tokens"]
    assert logits.shape == golden_logits.shape
    worst = float(np.abs(logits - golden_logits).max())
    print(f"{name} {flavour} {mode} {simd}: largest logit error {worst:.2e}")
    assert worst <= LOGIT_TOLERANCE

    assert len(found["compressions"]) == len(golden["compressions"])
    assert bool(golden["compressions"]) == (mode == "rpc")
    for record, one, kept in zip(found["compressions"], golden["compressions"], positions_of(expected, mode), strict=True):
        assert record["layer"] == one["layer"]
        assert record["len_before"] == one["cache_len_before"]
        assert record["len_after"] == one["cache_len_after"]
        assert record["kept"] == kept
    layers = layers_of(expected, mode)
    for index, record in enumerate(found["compressions"]):
        assert record["at_token"] == (index // layers + 1) * expected["P"] + expected["R"]
    assert found["stats"]["compressions"] * layers == len(golden["compressions"])
    assert found["stats"]["prefill_tokens"] == len(expected["prompt"])
    assert found["stats"]["decode_tokens"] == expected["max_new_tokens"] - 1


@pytest.mark.parametrize("simd", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("mode", ["full", "rpc"])
@pytest.mark.parametrize("name", NAMES)
def test_cached(name: str, mode: str, simd: str, tmp_path: pathlib.Path) -> None:
    check(name, "cached", mode, simd, tmp_path / "found.npz")


@pytest.mark.parametrize("mode", ["full", "rpc"])
@pytest.mark.parametrize("name", NAMES)
def test_portable(name: str, mode: str, tmp_path: pathlib.Path) -> None:
    check(name, "portable", mode, "portable", tmp_path / "found.npz")
