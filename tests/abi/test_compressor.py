"""The golden compressions through rrpc_compressor_compress, in a host's memory: kept sets, keys, values.

Golden data: tests/golden, or RRPC_GOLDEN. The library: target/release/libreasoning_rpc.so, or RRPC_LIBRARY.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from compressor_run import bits
from safetensors import safe_open

HERE = pathlib.Path(__file__).resolve().parent
GOLDEN = pathlib.Path(os.environ.get("RRPC_GOLDEN", HERE.parents[1] / "tests/golden")) / "compaction"
CASES = sorted(path.stem for path in GOLDEN.glob("*.safetensors"))


def test_every_case_is_there() -> None:
    assert len(CASES) == 11


@pytest.mark.parametrize("simd", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("layout", ["dense", "head_major", "token_major"])
@pytest.mark.parametrize("name", CASES)
def test_case(name: str, layout: str, simd: str, tmp_path: pathlib.Path) -> None:
    path, out = GOLDEN / f"{name}.safetensors", tmp_path / "found.npz"
    command = [sys.executable, HERE / "compressor_run.py", path, layout, out]
    done = subprocess.run(command, env={**os.environ, "RRPC_SIMD": simd}, capture_output=True, text=True)
    if f"cannot run {simd}" in done.stderr:
        pytest.skip(f"not run: this CPU has no {simd}")
    assert done.returncode == 0, done.stderr
    found = np.load(out)
    with safe_open(path, "np") as file:
        case = json.loads(file.metadata()["case"])
        expected = np.sort(file.get_tensor("indices"), axis=-1)
        if case["dtype"] == "float32":
            golden = {name: file.get_tensor(name) for name in ["k_out", "v_out"]}
    assert found["kept"].shape == expected.shape
    assert np.array_equal(found["freed"], found["expected_freed"])
    if case["dtype"] == "bfloat16":
        # The published code sums in bf16 there; a float sum agrees but for near-ties.
        assert len(set(found["kept"].flat) & set(expected.flat)) >= 62
        stays = np.concatenate([
            np.arange(case["prompt_len"]),
            case["prompt_len"] + found["kept"][0, 0],
            np.arange(case["cache_len_before"] - case["R"], case["cache_len_before"]),
        ])
        golden = {"k_out": bits(path, "k")[:, :, stays], "v_out": bits(path, "v")[:, :, stays]}
    else:
        assert np.array_equal(found["kept"], expected)
    for part in "kv":
        assert found[part].tobytes() == golden[f"{part}_out"].tobytes()
