"""Reads a model from a GGUF file: configuration, tensors under their Hugging Face names, tokenizer, chat template."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np

from .checkpoint import Checkpoint, Tokens, check_config, check_tensors, check_tokens
from .errors import ExportError
from .families import MLP, OUTPUT, QKV, Family, ModelConfig, find_family
from .gguf_format import GgufFile, read_gguf
from .rope import Rope, build_rope
from .settings import Settings, printable_name
from .tensors import StoredTensor, interleaved_to_half_split
from .tokenizer import adds_bos_by_default, build_tokenizer

# Hugging Face name -> name in a GGUF, without ".weight" and ".bias"; in a block, after "model.layers.N." and "blk.N."
MODEL_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
BLOCK_NAMES = {
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
# Divisors of the inverse frequencies: how a GGUF carries Llama 3's rope scaling.
ROPE_FACTORS = "rope_freqs.weight"


def open_gguf(path: Path) -> Checkpoint:
    file = read_gguf(path)
    metadata = Settings(str(path), file.metadata)
    family = find_family("gguf_architecture", metadata.text("general.architecture"))
    config = read_config(metadata, family, file)
    check_config(config)
    found = {hugging_face_name(name): tensor for name, tensor in file.tensors.items()}
    tensors = check_tensors(config, found, ignored=(ROPE_FACTORS,))
    if family.gguf_interleaved_qk:
        tensors = {name: half_split(name, tensor, config) for name, tensor in tensors.items()}

    tokenizer, tokens = None, Tokens()
    if metadata.get("tokenizer.ggml.model") is not None:
        tokenizer = build_tokenizer(metadata, config.vocab_size)
        tokens = read_tokens(metadata)
        check_tokens(tokens, config.vocab_size)
    return Checkpoint(
        kind="gguf",
        name=printable_name(path),
        config=config,
        tensors=tensors,
        tokenizer=None if tokenizer is None else json.dumps(tokenizer, ensure_ascii=False).encode("utf-8"),
        chat_template=metadata.text("tokenizer.chat_template"),
        tokens=tokens,
    )


def hugging_face_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; unknown names stay as they are."""
    stem, _, kind = name.rpartition(".")
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    names = {theirs: ours for ours, theirs in (BLOCK_NAMES if block else MODEL_NAMES).items()}
    ours = names.get(block[2] if block else stem)
    if ours is None:
        return name
    return f"model.layers.{block[1]}.{ours}.{kind}" if block else f"{ours}.{kind}"


def half_split(name: str, tensor: StoredTensor, config: ModelConfig) -> StoredTensor:
    """q and k, weights and biases, with their rows in half-split order."""
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return tensor
    return dataclasses.replace(tensor, order=interleaved_to_half_split(heads, config.head_dim))


def read_config(metadata: Settings, family: Family, file: GgufFile) -> ModelConfig:
    def key(name: str) -> str:
        return f"{family.gguf_architecture}.{name}"

    experts = metadata.get(key("expert_count"))
    if experts:
        raise ExportError(f"{metadata.origin}: {key('expert_count')} = {experts} is not supported")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ExportError(f"{metadata.origin}: tensor token_embd.weight is missing")
    num_heads = metadata.integer(key("attention.head_count"))
    hidden_size = metadata.integer(key("embedding_length"))
    head_dim = metadata.integer(key("attention.key_length"), default=max(1, hidden_size // num_heads))
    for name in ("attention.value_length", "rope.dimension_count"):
        found = metadata.integer(key(name), default=head_dim)
        if found != head_dim:
            raise ExportError(f"{metadata.origin}: {key(name)} {found} differs from head_dim {head_dim}")
    biases = {name: f"blk.0.{BLOCK_NAMES[name]}.bias" for name in QKV + OUTPUT + MLP}
    rules = {name: rule for names, rule in family.biases.items() for name in names}
    return ModelConfig(
        family=family,
        num_layers=metadata.integer(key("block_count")),
        num_heads=num_heads,
        num_kv_heads=metadata.integer(key("attention.head_count_kv"), default=num_heads),
        head_dim=head_dim,
        hidden_size=hidden_size,
        intermediate_size=metadata.integer(key("feed_forward_length")),
        vocab_size=metadata.integer(key("vocab_size"), default=embedding.num_rows),
        max_positions=metadata.integer(key("context_length")),
        rms_norm_eps=metadata.number(key("attention.layer_norm_rms_epsilon")),
        rope=read_rope(metadata, family, head_dim, file),
        tied_head="output.weight" not in file.tensors,
        biased=frozenset(name for name, rule in rules.items() if rule is True or biases[name] in file.tensors),
    )


def read_rope(metadata: Settings, family: Family, head_dim: int, file: GgufFile) -> Rope:
    prefix = f"{family.gguf_architecture}.rope."
    theta = metadata.number(prefix + "freq_base", default=10000.0)
    kind = metadata.text(prefix + "scaling.type") or "none"
    scaling = None if kind == "none" else {"rope_type": kind, "factor": metadata.get(prefix + "scaling.factor")}
    rope = build_rope(theta, head_dim, scaling)
    factors = file.tensors.get(ROPE_FACTORS)
    if factors is None:
        return rope
    expected = rope.inv_freq.shape
    if factors.shape != expected:
        raise ExportError(f"tensor {ROPE_FACTORS}: expected shape {list(expected)}, found {list(factors.shape)}")
    divisors = factors.vector()
    if not (np.isfinite(divisors) & (divisors > 0)).all():
        raise ExportError(f"tensor {ROPE_FACTORS}: holds values that are not positive")
    return Rope(rope.inv_freq / divisors, rope.attention_factor)


def read_tokens(metadata: Settings) -> Tokens:
    bos = metadata.token("tokenizer.ggml.bos_token_id")
    ends = [metadata.token(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    add_bos = metadata.boolean("tokenizer.ggml.add_bos_token", default=adds_bos_by_default(metadata))
    stop = tuple(sorted({end for end in ends if end is not None}))
    return Tokens(bos=bos, eos=ends[0], add_bos=add_bos and bos is not None, stop=stop)
