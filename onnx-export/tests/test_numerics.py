"""Exported graphs, run in float64, against golden logits and against a plain decoder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN, export_to
from interpreter import Interpreter, block_matrix, packed_matrix
from reference import logits_of
from safetensors.numpy import load_file
from synthetic import Model, make_model, write_gguf, write_huggingface

FLAVOURS = ("cached", "portable")
# float32 rounding of weights, inverse frequencies and cosines; a mistake of any kind shows in the second decimal
TOLERANCE = 2e-5


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", ["llama_p48_c8", "qwen2_group_p64_c2", "qwen2_p32"])
def test_golden_models(name: str, flavour: str, tmp_path: Path):
    """300 teacher-forced steps. The golden logits are float32 and themselves 1.4e-4 away from float64."""
    folder = GOLDEN / "generation" / name
    expected = json.loads((folder / "expected.json").read_text())
    export_to(folder, tmp_path / "out", "fp32", flavour)
    tokens = expected["results"]["full"]["tokens"]
    ids = expected["prompt"] + tokens[:-1]
    first = len(expected["prompt"]) - 1
    logits = Interpreter(tmp_path / "out").run(ids, list(range(first, len(ids))))
    golden = load_file(folder / "logits.safetensors")["logits_full"]
    assert np.abs(logits - golden).max() < 2e-4
    assert logits.argmax(axis=1).tolist() == tokens


VARIANTS = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama head_dim": ("llama", {"head_dim": 24, "num_attention_heads": 3, "num_key_value_heads": 1}),
    "llama linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama3": (
        "llama",
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "qwen2": ("qwen2", {}),
    "qwen2 untied": ("qwen2", {"tie_word_embeddings": False}),
}


def random_ids(rng: np.random.Generator, model: Model, length: int = 24) -> list[int]:
    return rng.integers(0, model.config["vocab_size"], length).tolist()


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_fp32_is_exact(variant: str, flavour: str, rng: np.random.Generator, tmp_path: Path):
    family, changes = VARIANTS[variant]
    model = make_model(rng, family, **changes)
    export_to(write_huggingface(model, tmp_path / "in"), tmp_path / "out", "fp32", flavour)
    ids = random_ids(rng, model)
    rows = [23, 0, 7]  # any order
    logits = Interpreter(tmp_path / "out").run(ids, rows)
    np.testing.assert_allclose(logits, logits_of(model, ids)[rows], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_sixteen_bit_weights_and_shards(dtype: str, rng: np.random.Generator, tmp_path: Path):
    model = make_model(rng, "qwen2")
    export_to(write_huggingface(model, tmp_path / "in", dtype, shards=3), tmp_path / "out")
    ids = random_ids(rng, model)
    logits = Interpreter(tmp_path / "out").run(ids, list(range(24)))
    np.testing.assert_allclose(logits, logits_of(model, ids), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize(
    ("kind", "weights"),
    [("Q4_0", "int4"), ("Q4_1", "int4"), ("Q4_0", "int8"), ("Q5_0", "int8"), ("Q8_0", "int8"), ("Q4_1", "fp32")],
)
def test_gguf_blocks_are_exact(
    kind: str, weights: str, family: str, flavour: str, rng: np.random.Generator, tmp_path: Path
):
    """Against the blocks dequantised weight by weight, through the whole graph: rows, permutation, minimums, head."""
    model = make_model(rng, family)
    export_to(write_gguf(model, tmp_path / "model.gguf", rng, kind), tmp_path / "out", weights, flavour)
    ids = random_ids(rng, model)
    logits = Interpreter(tmp_path / "out").run(ids, list(range(24)))
    np.testing.assert_allclose(logits, logits_of(model, ids), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("weights", "bits"), [("int8", 8), ("int4", 4)])
def test_rounding_of_float_weights(weights: str, bits: int, rng: np.random.Generator, tmp_path: Path):
    """Every weight lies within half a step of its block, or (4 bits) was clipped; and blocks beat plain rounding."""
    model = make_model(rng, "llama", tie_word_embeddings=True)
    projection = "model.layers.1.mlp.down_proj"
    model.weights[projection + ".weight"][5] = 0  # rows without any weight
    export_to(write_huggingface(model, tmp_path / "in"), tmp_path / "out", weights, "portable")
    graph = Interpreter(tmp_path / "out")
    export_to(tmp_path / "in", tmp_path / "packed", weights)
    packed = Interpreter(tmp_path / "packed").weights
    errors = []
    for name in (projection, "model.layers.0.self_attn.q_proj", "model.embed_tokens"):
        exact = model.weights[name + ".weight"].astype(np.float64)
        width = 8 if name == "model.embed_tokens" else bits
        scales = graph.weights[name + ".scales"]
        rounded = block_matrix(graph.weights[name + ".quants"], scales, width)
        # Both flavours hold the same weights.
        kind = "q8_0" if width == 8 else "q4_0"
        np.testing.assert_array_equal(packed_matrix(packed[name + ".packed"], *exact.shape, kind), rounded)
        step = np.repeat(np.abs(scales), 32, axis=1)
        if width == 8:
            # Half a step, and what 127 steps lose when the scale is rounded to 11 bits.
            assert (np.abs(rounded - exact) <= step * (0.5001 + 127 / 2048)).all()
        else:
            largest = np.abs(exact).reshape(len(exact), -1, 32).max(axis=2)
            plain = np.repeat(largest / 7, 32, axis=1)
            plain_error = (np.rint(exact / np.where(plain == 0, 1, plain)) * plain - exact) ** 2
            error = (rounded - exact) ** 2
            assert (np.abs(rounded - exact) <= np.repeat(largest, 32, axis=1) * 0.2).all()
            assert error.sum() < 0.85 * plain_error.sum()
        errors.append(np.sqrt(((rounded - exact) ** 2).sum() / (exact**2).sum()))
    assert max(errors) < {8: 0.01, 4: 0.1}[bits]
    if bits == 8:
        ids = random_ids(rng, model)
        exact = logits_of(model, ids)
        difference = graph.run(ids, list(range(24))) - exact
        assert np.sqrt((difference**2).mean()) < 0.05 * exact.std()


def test_four_bit_scales_are_the_best_for_their_quants(rng: np.random.Generator, tmp_path: Path):
    """No other scale gives the chosen quants a smaller squared error, weighted by the root of the magnitude."""
    model = make_model(rng, "llama")
    export_to(write_huggingface(model, tmp_path / "in"), tmp_path / "out", "int4", "portable")
    graph = Interpreter(tmp_path / "out")
    name = "model.layers.0.mlp.gate_proj"
    exact = model.weights[name + ".weight"].astype(np.float64)
    scales = graph.weights[name + ".scales"].astype(np.float64)
    matrix = {factor: block_matrix(graph.weights[name + ".quants"], factor * scales, 4) for factor in (0.99, 1.0, 1.01)}
    importance = np.sqrt(np.abs(exact))
    error = {
        factor: (importance * (m - exact) ** 2).reshape(len(exact), -1, 32).sum(axis=2) for factor, m in matrix.items()
    }
    assert (error[1.0] <= error[0.99]).all() and (error[1.0] <= error[1.01]).all()


def test_llama3_frequencies_in_a_gguf(rng: np.random.Generator, tmp_path: Path):
    """A GGUF carries them as divisors of the plain frequencies."""
    model = make_model(rng, "llama")
    factors = rng.uniform(1, 8, 8).astype(np.float32)
    write_gguf(model, tmp_path / "model.gguf", rng, tensors={"rope_freqs.weight": factors})
    export_to(tmp_path / "model.gguf", tmp_path / "out")
    found = Interpreter(tmp_path / "out").weights["inv_freq"]
    expected = [10000.0 ** (-2 * pair / 16) / float(factors[pair]) for pair in range(8)]
    np.testing.assert_allclose(found, expected, rtol=3e-7)
