"""A Llama in JAX: pre-norm blocks, RMS norms, rotary positions, grouped queries, gated SiLU, a head of its own."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Shape:
    """Dimensions, by their names in config.json."""

    vocab_size: int
    hidden_size: int = 128
    intermediate_size: int = 192
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6


Parameters = dict[str, jax.Array]


def names(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Every tensor under its name in a Hugging Face checkpoint, linear layers [out, in]."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    queries, keys = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab_size, hidden)}
    for layer in range(shape.num_hidden_layers):
        block = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        tensors |= {f"model.layers.{layer}.{name}.weight": size for name, size in block.items()}
    tensors["model.norm.weight"] = (hidden,)
    tensors["lm_head.weight"] = (shape.vocab_size, hidden)
    return tensors


def initialize(shape: Shape, seed: int) -> Parameters:
    """Normal weights of deviation 1/sqrt(in), those into the residual stream smaller; norms 1.

    Embeddings are as large as what the blocks add to them, or a token's own identity drowns: then copying, from which
    all else follows here, is learnt many times later.
    """
    generator = np.random.default_rng(seed)
    residual = (2 * shape.num_hidden_layers) ** -0.5
    parameters = {}
    for name, size in names(shape).items():
        if len(size) == 1:
            values = np.ones(size)
        else:
            deviation = {"model.embed_tokens.weight": 1.0, "lm_head.weight": 0.02}.get(name, size[1] ** -0.5)
            deviation *= residual if "o_proj" in name or "down_proj" in name else 1.0
            values = generator.normal(0.0, deviation, size)
        parameters[name] = jnp.asarray(values, jnp.float32)
    return parameters


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array) -> jax.Array:
    """Attention [B, T, heads * D] of q [B, T, heads, D] over k, v [B, T, KV heads, D].

    With three dimensions, the queries of a KV head side by side: XLA differentiates that three times as fast on a CPU.
    """
    batch, length, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    group = heads // kv_heads
    q = q.reshape(batch, length, kv_heads, group, head_dim).transpose(0, 2, 3, 1, 4)
    q = q.reshape(batch * kv_heads, group * length, head_dim)
    k, v = (x.transpose(0, 2, 1, 3).reshape(batch * kv_heads, length, head_dim) for x in (k, v))
    seen = jnp.broadcast_to(visible[:, :, None], (batch, kv_heads, group, length, length))
    seen = seen.reshape(batch * kv_heads, group * length, length)
    scores = jnp.where(seen, q @ k.swapaxes(1, 2) * head_dim**-0.5, -1e9)
    shares = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    y = shares @ v / shares.sum(-1, keepdims=True)
    y = y.reshape(batch, kv_heads, group, length, head_dim).transpose(0, 3, 1, 2, 4)
    return y.reshape(batch, length, heads * head_dim)


def logits(
    parameters: Parameters, shape: Shape, ids: jax.Array, positions: jax.Array, visible: jax.Array
) -> jax.Array:
    """Logits [B, T, vocabulary] of ids [B, T] at positions [B, T].

    visible [layers, B, kv_heads, T, T], or with 1 in the place of layers, of kv_heads: whether query i sees key j.
    """
    batch, length = ids.shape
    kv_heads, head_dim = shape.num_key_value_heads, shape.head_dim

    def norm(x: jax.Array, weight: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + shape.rms_norm_eps) * weight

    frequencies = shape.rope_theta ** (-jnp.arange(0, head_dim, 2) / head_dim)
    angles = positions[:, :, None, None] * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    x = parameters["model.embed_tokens.weight"][ids]
    for layer in range(shape.num_hidden_layers):
        weight = lambda name, layer=layer: parameters[f"model.layers.{layer}.{name}.weight"]
        y = norm(x, weight("input_layernorm"))
        q = rotate((y @ weight("self_attn.q_proj").T).reshape(batch, length, -1, head_dim), cos, sin)
        k = rotate((y @ weight("self_attn.k_proj").T).reshape(batch, length, kv_heads, head_dim), cos, sin)
        v = (y @ weight("self_attn.v_proj").T).reshape(batch, length, kv_heads, head_dim)
        y = attend(q, k, v, visible[layer if visible.shape[0] > 1 else 0])
        x = x + y @ weight("self_attn.o_proj").T
        y = norm(x, weight("post_attention_layernorm"))
        inner = jax.nn.silu(y @ weight("mlp.gate_proj").T) * (y @ weight("mlp.up_proj").T)
        x = x + inner @ weight("mlp.down_proj").T
    return norm(x, parameters["model.norm.weight"]) @ parameters["lm_head.weight"].T
