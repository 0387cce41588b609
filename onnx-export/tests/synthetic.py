"""Small random models, written as Hugging Face folders and as GGUF files."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

CONFIG = {
    "vocab_size": 96,
    "max_position_embeddings": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
FAMILIES = {
    "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False},
    "qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True},
}


@dataclass
class Model:
    """`config` as in config.json; `weights` by Hugging Face name, float32."""

    config: dict
    weights: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def head_dim(self) -> int:
        return self.config.get("head_dim") or self.config["hidden_size"] // self.config["num_attention_heads"]


def make_model(rng: np.random.Generator, family: str, **changes: object) -> Model:
    config = {**CONFIG, **FAMILIES[family], **changes}
    model = Model({key: value for key, value in config.items() if value is not None})
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    queries = config["num_attention_heads"] * model.head_dim
    keys = config["num_key_value_heads"] * model.head_dim
    attention_bias = config.get("attention_bias", False)

    def add(name: str, *shape: int, mean: float = 0.0) -> None:
        scale = 0.1 if len(shape) == 1 else shape[-1] ** -0.5
        model.weights[name] = (mean + scale * rng.standard_normal(shape)).astype(np.float32)

    def linear(name: str, out: int, width: int, bias: bool) -> None:
        add(name + ".weight", out, width)
        if bias:
            add(name + ".bias", out)

    add("model.embed_tokens.weight", vocab, hidden)
    add("model.norm.weight", hidden, mean=1)
    if not config["tie_word_embeddings"]:
        add("lm_head.weight", vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        add(prefix + "input_layernorm.weight", hidden, mean=1)
        add(prefix + "post_attention_layernorm.weight", hidden, mean=1)
        linear(prefix + "self_attn.q_proj", queries, hidden, family == "qwen2" or attention_bias)
        linear(prefix + "self_attn.k_proj", keys, hidden, family == "qwen2" or attention_bias)
        linear(prefix + "self_attn.v_proj", keys, hidden, family == "qwen2" or attention_bias)
        linear(prefix + "self_attn.o_proj", hidden, queries, attention_bias)
        linear(prefix + "mlp.gate_proj", inner, hidden, config.get("mlp_bias", False))
        linear(prefix + "mlp.up_proj", inner, hidden, config.get("mlp_bias", False))
        linear(prefix + "mlp.down_proj", hidden, inner, config.get("mlp_bias", False))
    return model


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def write_huggingface(model: Model, folder: Path, dtype: str = "F32", shards: int = 1) -> Path:
    """Weights are rounded to `dtype` on the way; model.weights is updated to what the file holds."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", model.config)
    kind = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[dtype]
    stored = {name: weight.astype(kind) for name, weight in model.weights.items()}
    model.weights = {name: weight.astype(np.float32) for name, weight in stored.items()}
    if shards == 1:
        save_file(stored, folder / "model.safetensors")
        return folder
    weight_map = {}
    for index in range(shards):
        file = f"model-{index + 1:05}-of-{shards:05}.safetensors"
        names = list(stored)[index::shards]
        save_file({name: stored[name] for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    return folder


# GGUF

GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem.startswith("model.layers."):
        _, _, layer, rest = stem.split(".", 3)
        return f"blk.{layer}.{GGUF_NAMES[rest]}.{kind}"
    return f"{GGUF_NAMES[stem]}.{kind}"


def random_blocks(rng: np.random.Generator, shape: tuple[int, int], kind: str) -> np.ndarray:
    """Random raw blocks, uint8 [out, bytes]: any quant, scales of both signs, none of it a rounding of anything."""
    out, blocks = shape[0], shape[1] // 32
    scale = 0.02 * rng.standard_normal((out, blocks, 1)) / {"Q4_0": 1, "Q4_1": 1, "Q5_0": 2, "Q8_0": 16}[kind]
    parts = [scale.astype("<f2").view(np.uint8)]
    if kind == "Q4_1":
        parts.append((0.1 * rng.standard_normal((out, blocks, 1))).astype("<f2").view(np.uint8))
    quants = {"Q4_0": 16, "Q4_1": 16, "Q5_0": 20, "Q8_0": 32}[kind]  # bytes, the fifth bits included
    parts.append(rng.integers(0, 256, (out, blocks, quants), dtype=np.uint8))
    return np.concatenate(parts, axis=-1).reshape(out, -1)


def dequantise(raw: np.ndarray, kind: str) -> np.ndarray:
    """Blocks of ggml's quants as float64 [out, in], weight by weight, from the format's definition."""
    size = {"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q8_0": 34}[kind]
    out = np.empty((raw.shape[0], raw.shape[1] // size * 32), np.float64)
    for row in range(raw.shape[0]):
        for block in range(raw.shape[1] // size):
            data = raw[row, block * size : (block + 1) * size].tobytes()
            d = float(np.frombuffer(data, "<f2", 1)[0])
            for j in range(32):
                if kind == "Q8_0":
                    value = d * int.from_bytes(data[2 + j : 3 + j], "little", signed=True)
                else:
                    byte = data[size - 16 + j % 16]
                    quant = byte & 15 if j < 16 else byte >> 4
                    if kind == "Q5_0" and int.from_bytes(data[2:6], "little") >> j & 1:
                        quant += 16
                    m = {"Q4_0": -8 * d, "Q4_1": float(np.frombuffer(data, "<f2", 1, 2)[0]), "Q5_0": -16 * d}[kind]
                    value = d * quant + m
                out[row, block * 32 + j] = value
    return out


def write_gguf(
    model: Model,
    path: Path,
    rng: np.random.Generator,
    kind: str = "F32",
    metadata: dict | None = None,
    tensors: dict[str, np.ndarray] | None = None,
) -> Path:
    """Matrices as random blocks of `kind`, model.weights becomes what they stand for, float64.

    Beside Q4_1, which an 8-bit head cannot hold exactly, embedding and head are Q8_0.
    """
    config, family = model.config, model.config["model_type"]
    writer = gguf.GGUFWriter(path, family)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    for key, value in (metadata or {}).items():
        writer.add_key_value(key, *value)
    rotated = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, weight in model.weights.items():
        heads = rotated.get(name.split(".")[-2])
        raw_kind = kind if weight.ndim == 2 else "F32"
        if kind == "Q4_1" and name in ("model.embed_tokens.weight", "lm_head.weight"):
            raw_kind = "Q8_0"
        if raw_kind == "F32":
            stored = weight
        else:
            stored = random_blocks(rng, weight.shape, raw_kind)
            model.weights[name] = dequantise(stored, raw_kind)
        if family == "llama" and heads:
            # As llama.cpp's converter does: half-split pairs become neighbours.
            stored = stored.reshape(heads, 2, model.head_dim // 2, -1).swapaxes(1, 2).reshape(stored.shape)
        dtype = None if raw_kind == "F32" else gguf.GGMLQuantizationType[raw_kind]
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(stored), raw_dtype=dtype)
    for name, tensor in (tensors or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
