"""A plain float64 decoder: what the exported graphs must compute. Written from the models' definition alone."""

from __future__ import annotations

import math

import numpy as np
from synthetic import Model


def inverse_frequencies(config: dict, head_dim: int) -> list[float]:
    """Pair by pair, with the llama3 scaling as Meta's reference code has it (`apply_scaling`)."""
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", "default")
    frequencies = []
    for pair in range(head_dim // 2):
        frequency = config["rope_theta"] ** (-2 * pair / head_dim)
        if kind == "linear":
            frequency /= scaling["factor"]
        elif kind == "llama3":
            original = scaling["original_max_position_embeddings"]
            low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
            wavelength = 2 * math.pi / frequency
            if wavelength > original / low:
                frequency /= scaling["factor"]
            elif wavelength >= original / high:
                smooth = (original / wavelength - low) / (high - low)
                frequency = (1 - smooth) * frequency / scaling["factor"] + smooth * frequency
        frequencies.append(frequency)
    return frequencies


def rotate(x: np.ndarray, inv_freq: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """x [T, heads, D], half-split pairs. The angle is the float32 product, as models are trained with."""
    angle = (positions.astype(np.float32)[:, None] * inv_freq.astype(np.float32)).astype(np.float64)[:, None, :]
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=-1)


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    """Causal; q [T, Hq, D], k and v [T, Hkv, D] -> [T, Hq * D]; query head h reads KV head h // (Hq / Hkv)."""
    length, heads, _ = q.shape
    out = np.empty_like(q)
    for head in range(heads):
        kv_head = head // (heads // k.shape[1])
        logits = scale * q[:, head] @ k[:, kv_head].T
        logits[np.triu_indices(length, 1)] = -np.inf
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        out[:, head] = weights / weights.sum(axis=1, keepdims=True) @ v[:, kv_head]
    return out.reshape(length, -1)


def norm(x: np.ndarray, weight: np.ndarray, epsilon: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + epsilon) * weight


def logits_of(model: Model, ids: list[int]) -> np.ndarray:
    """Logits at every position, float64 [T, vocab]."""
    config, head_dim = model.config, model.head_dim
    weights = {name: weight.astype(np.float64) for name, weight in model.weights.items()}
    epsilon = config["rms_norm_eps"]
    inv_freq = np.array(inverse_frequencies(config, head_dim))
    positions = np.arange(len(ids))

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[name + ".weight"].T + weights.get(name + ".bias", 0.0)

    def heads(x: np.ndarray) -> np.ndarray:
        return x.reshape(len(ids), -1, head_dim)

    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        y = norm(x, weights[prefix + "input_layernorm.weight"], epsilon)
        q, k, v = (heads(linear(y, f"{prefix}self_attn.{name}_proj")) for name in "qkv")
        y = attend(rotate(q, inv_freq, positions), rotate(k, inv_freq, positions), v, head_dim**-0.5)
        x = x + linear(y, prefix + "self_attn.o_proj")
        y = norm(x, weights[prefix + "post_attention_layernorm.weight"], epsilon)
        gate = linear(y, prefix + "mlp.gate_proj")
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(y, prefix + "mlp.up_proj"), prefix + "mlp.down_proj")
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return norm(x, weights["model.norm.weight"], epsilon) @ head.T
