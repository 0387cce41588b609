"""Inverse frequencies against published formulas and models."""

from __future__ import annotations

import math

import numpy as np
import pytest
from reference import inverse_frequencies

from reasoning_rpc_export.errors import ExportError
from reasoning_rpc_export.rope import Rope, build_rope

# config.json of Llama 3.1 8B and of Llama 3.2 1B
LLAMA_31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LLAMA_32 = LLAMA_31 | {"factor": 32.0}


@pytest.mark.parametrize(("scaling", "head_dim"), [(LLAMA_31, 128), (LLAMA_32, 64), (None, 128), (LLAMA_31, 2)])
def test_against_the_reference_code(scaling: dict | None, head_dim: int):
    rope = build_rope(500000.0, head_dim, scaling)
    expected = inverse_frequencies({"rope_theta": 500000.0, "rope_scaling": scaling}, head_dim)
    assert rope.inv_freq.dtype == np.float32 and rope.attention_factor == 1.0
    np.testing.assert_allclose(rope.inv_freq, expected, rtol=1e-7)


def test_llama_31_by_hand():
    """theta 500000, head_dim 128: pair 0 turns once per 2 pi tokens and stays, pair 63 is stretched by all of 8."""
    found = build_rope(500000.0, 128, LLAMA_31).inv_freq
    plain = build_rope(500000.0, 128, None).inv_freq
    assert found[0] == 1.0
    assert found[63] == pytest.approx(500000.0 ** (-126 / 128) / 8, rel=1e-6)
    assert found[63] == pytest.approx(3.0689e-7, rel=1e-4)
    # Wavelengths: pair 28 is below 8192 / 4 and stays, pair 35 is above 8192 and is stretched, pair 30 lies between.
    assert 2 * math.pi / plain[28] < 2048 and found[28] == plain[28]
    assert 2 * math.pi / plain[35] > 8192 and found[35] == pytest.approx(plain[35] / 8, rel=1e-6)
    assert 2048 < 2 * math.pi / plain[30] < 8192
    smooth = (8192 * float(plain[30]) / (2 * math.pi) - 1) / 3
    assert found[30] == pytest.approx(((1 - smooth) / 8 + smooth) * plain[30], rel=1e-6)


def test_linear_divides_by_its_factor():
    found = build_rope(10000.0, 64, {"type": "linear", "factor": 4.0})
    np.testing.assert_allclose(found.inv_freq, [10000 ** (-pair / 32) / 4 for pair in range(32)], rtol=1e-7)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "yarn", "factor": 4.0}, "rope scaling type 'yarn' is not supported"),
        ({"type": "dynamic", "factor": 4.0}, "'dynamic'"),
        ({"rope_type": "linear"}, "factor must be a positive number, found None"),
        ({"rope_type": "linear", "factor": -1}, "factor must be a positive number, found -1"),
        (LLAMA_31 | {"low_freq_factor": 4.0}, "low_freq_factor 4.0 must lie below high_freq_factor 4.0"),
        ({"rope_type": ["llama3"]}, "is not supported"),
    ],
)
def test_unsupported_scaling(scaling: dict, message: str):
    with pytest.raises(ExportError, match=message):
        build_rope(10000.0, 64, scaling)


def test_caches():
    rope = Rope(np.array([1.0, 0.01], np.float32), attention_factor=0.5)
    cos, sin = rope.caches(100, 102)
    for row, position in enumerate((100, 101)):
        for pair, frequency in enumerate((1.0, float(np.float32(0.01)))):
            assert cos[row, pair] == pytest.approx(0.5 * math.cos(position * frequency), abs=1e-7)
            assert sin[row, pair] == pytest.approx(0.5 * math.sin(position * frequency), abs=1e-7)
    assert cos.dtype == sin.dtype == np.float32
