"""A decoder in float64 that knows no cache: the whole text at once, under a mask. Of the models of tests/golden."""

import json
import os
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

GOLDEN = Path(os.environ.get("RRPC_GOLDEN") or Path(__file__).resolve().parents[1] / "golden") / "generation"


def visible(text: list[int], prompt: int, delimiters: set[int], gists: int, following: int) -> np.ndarray:
    """[i, j]: whether token i sees token j. A thought is not seen from behind its gists on."""
    seen = np.tril(np.ones((len(text), len(text)), bool))
    start, at = prompt, prompt
    while at < len(text):
        if text[at] in delimiters:
            seen[at + 1 + gists :, start : at + 1] = False
            start = at = at + 1 + following
        else:
            at += 1
    return seen


def logits_of(name: str, text: list[int], seen: np.ndarray) -> np.ndarray:
    """Float64, from the definition of the models: [tokens, vocab]."""
    config = json.loads((GOLDEN / name / "config.json").read_text())
    weights = {key: value.astype(np.float64) for key, value in load_file(GOLDEN / name / "model.safetensors").items()}
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config["hidden_size"] // heads
    # The angle is the float32 product, as models are trained with.
    frequencies = np.float32(config["rope_theta"] ** (-np.arange(0, head_dim, 2) / head_dim))
    angle = (np.arange(len(text), dtype=np.float32)[:, None] * frequencies).astype(np.float64)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]

    def norm(x: np.ndarray, key: str) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"]) * weights[f"{key}.weight"]

    def linear(x: np.ndarray, key: str) -> np.ndarray:
        return x @ weights[f"{key}.weight"].T + weights.get(f"{key}.bias", 0.0)

    def rotate(x: np.ndarray) -> np.ndarray:
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    x = weights["model.embed_tokens.weight"][text]
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}"
        y = norm(x, f"{block}.input_layernorm")
        q, k, v = (linear(y, f"{block}.self_attn.{p}_proj").reshape(len(text), -1, head_dim) for p in "qkv")
        q, k = rotate(q), np.repeat(rotate(k), heads // kv_heads, axis=1)
        scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(head_dim)
        scores = np.where(seen, scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        y = np.einsum("hij,jhd->ihd", shares, np.repeat(v, heads // kv_heads, axis=1)).reshape(len(text), -1)
        x = x + linear(y, f"{block}.self_attn.o_proj")
        y = norm(x, f"{block}.post_attention_layernorm")
        gate = linear(y, f"{block}.mlp.gate_proj")
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(y, f"{block}.mlp.up_proj"), f"{block}.mlp.down_proj")
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return norm(x, "model.norm") @ head.T
