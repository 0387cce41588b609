"""GGUF files: the real SmolLM2, and synthetic ones for what it does not have."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from conftest import GOLDEN, export_to
from synthetic import make_model, write_gguf

from reasoning_rpc_export.export import open_checkpoint
from reasoning_rpc_export.tokenizer import PRE_TOKENIZERS

STRING, UINT32, INT32, BOOL, ARRAY = (
    gguf.GGUFValueType[name] for name in ("STRING", "UINT32", "INT32", "BOOL", "ARRAY")
)


def golden(name: str) -> dict:
    return json.loads((GOLDEN / "smollm2" / name).read_text())


def test_every_tensor_of_smollm2(smollm2: Path):
    """sha256 of each dequantised tensor, in Hugging Face names and row order."""
    expected = golden("tensors_expected.json")["tensors"]
    tensors = open_checkpoint(smollm2).tensors
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        digest = hashlib.sha256()
        for start, stop in tensor.chunks():
            digest.update(tensor.rows(start, stop).tobytes())
        assert list(tensor.shape) == expected[name]["shape"]
        assert digest.hexdigest() == expected[name]["sha256"], name


def bytes_of_characters() -> dict[str, int]:
    """GPT-2's table: printable bytes stand for themselves, the others for the characters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + index): b for index, b in enumerate(others)}


def test_smollm2_tokenizer_manifest_and_template(smollm2: Path, tmp_path: Path):
    manifest = export_to(smollm2, tmp_path / "out", "int4")
    assert manifest["architecture"] == "llama"
    assert manifest["source"] == {"kind": "gguf", "name": smollm2.name}
    assert manifest["dimensions"] == {
        "num_layers": 30,
        "num_heads": 9,
        "num_kv_heads": 3,
        "head_dim": 64,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "max_positions": 8192,
        "parameters": 134515008,
    }
    assert manifest["tokens"] == {"bos": 1, "eos": 2, "add_bos": False, "stop": [2]}
    template = (tmp_path / "out" / "chat_template.jinja").read_text(encoding="utf-8")
    assert template == golden("chat_template_expected.json")["chat_template"]

    tokenizer = json.loads((tmp_path / "out" / "tokenizer.json").read_text(encoding="utf-8"))
    assert tokenizer["pre_tokenizer"]["pretokenizers"][0] == {"type": "Digits", "individual_digits": True}
    text_of = {index: token for token, index in tokenizer["model"]["vocab"].items()}
    special = {entry["id"]: entry["content"] for entry in tokenizer["added_tokens"]}
    assert len(text_of) == 49152 and all(entry["special"] for entry in tokenizer["added_tokens"])
    table = bytes_of_characters()
    cases = golden("tokenizer_expected.json")["cases"]
    assert len(cases) == 40
    for case in cases:
        decoded = b"".join(
            special[token].encode() if token in special else bytes(table[character] for character in text_of[token])
            for token in case["ids"]
        )
        assert decoded.decode("utf-8", "replace") == case["decoded"]


TOKENS = ["a", "b", "ab", "<s>", "<|eot|>", "<think>", "[PAD]"]
TYPES = [1, 1, 1, 3, 3, 4, 5]


def tokenizer_metadata(pre: str, **changes: tuple) -> dict[str, tuple]:
    metadata = {
        "tokenizer.ggml.model": ("gpt2", STRING),
        "tokenizer.ggml.pre": (pre, STRING),
        "tokenizer.ggml.tokens": (TOKENS, ARRAY, STRING),
        "tokenizer.ggml.token_type": (TYPES, ARRAY, INT32),
        "tokenizer.ggml.merges": (["a b"], ARRAY, STRING),
        "tokenizer.ggml.bos_token_id": (3, UINT32),
        "tokenizer.ggml.eos_token_id": (4, UINT32),
        "tokenizer.ggml.eot_token_id": (2, UINT32),
        "tokenizer.ggml.eom_token_id": (4, UINT32),
    }
    return metadata | changes


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_tokenizer_of_each_pre_tokenizer(pre: str, rng: np.random.Generator, tmp_path: Path):
    write_gguf(make_model(rng, "qwen2"), tmp_path / "m.gguf", rng, metadata=tokenizer_metadata(pre))
    manifest = export_to(tmp_path / "m.gguf", tmp_path / "out")
    llama3 = pre in ("llama-bpe", "llama3")
    assert manifest["tokens"] == {"bos": 3, "eos": 4, "add_bos": llama3, "stop": [2, 4]}
    tokenizer = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    assert [(entry["id"], entry["content"], entry["special"]) for entry in tokenizer["added_tokens"]] == [
        (3, "<s>", True),
        (4, "<|eot|>", True),
        (5, "<think>", False),
    ]
    assert tokenizer["model"]["vocab"] == {token: index for index, token in enumerate(TOKENS)}
    assert tokenizer["model"]["merges"] == [["a", "b"]]
    assert tokenizer["model"]["ignore_merges"] == llama3
    assert tokenizer["post_processor"] is None
    assert tokenizer["decoder"]["type"] == "ByteLevel"
    assert tokenizer["normalizer"] == ({"type": "NFC"} if "qwen" in pre else None)
    steps = tokenizer["pre_tokenizer"]["pretokenizers"]
    assert steps[-1]["type"] == "ByteLevel" and not steps[-1]["add_prefix_space"]
    assert steps[-1]["use_regex"] == (pre in ("gpt-2", "smollm"))
    if steps[0]["type"] == "Split":
        digits = r"\p{N}{1,3}" if llama3 else r"\p{N}"
        assert steps[0]["pattern"]["Regex"] == (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits +
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )  # fmt: skip


def test_the_file_decides_about_bos(rng: np.random.Generator, tmp_path: Path):
    metadata = tokenizer_metadata("llama-bpe", **{"tokenizer.ggml.add_bos_token": (False, BOOL)})
    write_gguf(make_model(rng, "llama"), tmp_path / "m.gguf", rng, metadata=metadata)
    assert export_to(tmp_path / "m.gguf", tmp_path / "out")["tokens"]["add_bos"] is False


def test_without_a_tokenizer_the_model_takes_token_ids_only(rng: np.random.Generator, tmp_path: Path):
    write_gguf(make_model(rng, "llama"), tmp_path / "m.gguf", rng)
    manifest = export_to(tmp_path / "m.gguf", tmp_path / "out")
    assert manifest["tokens"] == {"bos": None, "eos": None, "add_bos": False, "stop": []}
    assert set(manifest["files"]) == {"model.onnx", "model.onnx.data"}


@pytest.mark.parametrize("kind", ["Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K", "Q3_K", "F16", "BF16", "IQ4_NL"])
def test_every_other_type_is_dequantised(kind: str, rng: np.random.Generator, tmp_path: Path):
    """One tensor of each type beside float32 ones; what is read is what the gguf package says it holds."""
    model = make_model(rng, "llama", hidden_size=256, num_attention_heads=4)
    name, ggml_name = "model.layers.1.mlp.up_proj.weight", "blk.1.ffn_up.weight"
    shape = model.weights.pop(name).shape
    quant = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[quant]
    if kind in ("F16", "BF16"):
        values = rng.standard_normal(shape).astype(np.float32)
        raw = gguf.quants.quantize(values, quant)
    else:
        raw = rng.integers(0, 60, (shape[0], shape[1] // block * size), dtype=np.uint8)  # no NaN in any float16
    path = tmp_path / "m.gguf"
    writer_model = dict(model.weights)
    original_add = gguf.GGUFWriter.write_header_to_file

    def add_then_write(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor(ggml_name, raw, raw_dtype=quant)
        original_add(writer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "write_header_to_file", add_then_write)
        write_gguf(model, path, rng)
    assert model.weights.keys() == writer_model.keys()
    tensor = open_checkpoint(path).tensors[name]
    assert tensor.encoding == kind
    expected = gguf.quants.dequantize(raw, quant).astype(np.float32).reshape(shape)
    np.testing.assert_array_equal(tensor.rows(0, shape[0]), expected)
    np.testing.assert_array_equal(tensor.rows(3, 7), expected[3:7])
    for weights in ("fp32", "int8", "int4"):
        export_to(path, tmp_path / "out", weights)
