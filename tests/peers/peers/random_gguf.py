"""Writes a GGUF of random Q4_0 weights: the one source from which every engine's model is made."""

from __future__ import annotations

import zlib
from pathlib import Path

import gguf
import numpy as np

from .shapes import BLOCK, Shape

# Standard deviation of a quant that is uniform over -8 .. 7.
QUANT_DEVIATION = 4.61


def write(shape: Shape, path: Path, seed: int = 0) -> None:
    partial = path.with_name(path.name + ".partial")
    writer = gguf.GGUFWriter(partial, "qwen2")
    writer.add_name(shape.name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    add_tokenizer(writer, shape.vocab)

    def random(name: str) -> np.random.Generator:
        return np.random.default_rng([seed, zlib.crc32(name.encode())])

    def matrix(name: str, rows: int, width: int, deviation: float) -> None:
        blocks = q4_0(random(name), rows, width, deviation)
        writer.add_tensor(f"{name}.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    def vector(name: str, values: np.ndarray) -> None:
        writer.add_tensor(name, values.astype(np.float32))

    def norm(name: str) -> None:
        vector(f"{name}.weight", random(name).uniform(0.8, 1.2, shape.hidden))

    # The table is the head too: logits get a standard deviation of about 2.
    matrix("token_embd", shape.vocab, shape.hidden, 2 * shape.hidden**-0.5)
    norm("output_norm")
    for layer in range(shape.layers):
        prefix = f"blk.{layer}."
        norm(prefix + "attn_norm")
        norm(prefix + "ffn_norm")
        for name, (rows, width) in shape.matrices.items():
            matrix(prefix + name, rows, width, width**-0.5)
            if name in ("attn_q", "attn_k", "attn_v"):
                vector(f"{prefix}{name}.bias", random(prefix + name + ".bias").normal(0, 0.1, rows))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(path)


def q4_0(random: np.random.Generator, rows: int, width: int, deviation: float) -> np.ndarray:
    """Blocks of uniform quants and scales within a factor of 2 of each other, uint8 [rows, width / 32 * 18]."""
    blocks = width // BLOCK
    data = np.empty((rows, blocks, 2 + BLOCK // 2), np.uint8)
    scales = random.uniform(0.7, 1.4, (rows, blocks)) * (deviation / QUANT_DEVIATION)
    data[..., :2] = scales.astype("<f2")[..., None].view(np.uint8)
    data[..., 2:] = random.integers(0, 256, (rows, blocks, BLOCK // 2), np.uint8)
    return data.reshape(rows, -1)


def add_tokenizer(writer: gguf.GGUFWriter, vocab: int) -> None:
    """Byte-level BPE: 256 bytes, pairs of small letters with their merges, an end token, and names that no text has."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    tokens = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pairs = [(first, second) for first in letters for second in letters]
    tokens += [first + second for first, second in pairs]
    types = [gguf.TokenType.NORMAL] * len(tokens)
    end = len(tokens)
    tokens.append("<|endoftext|>")
    types.append(gguf.TokenType.CONTROL)
    for index in range(len(tokens), vocab):
        tokens.append(f"<|unused_{index}|>")
        types.append(gguf.TokenType.UNUSED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([f"{first} {second}" for first, second in pairs])
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)
