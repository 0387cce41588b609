"""Everything that an export refuses: one line on stderr that names it, exit code 1, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from conftest import Outcome, export_to, run_export
from safetensors.numpy import load_file, save_file
from synthetic import make_model, write_gguf, write_huggingface, write_json
from test_gguf import ARRAY, INT32, STRING, UINT32, tokenizer_metadata
from test_huggingface import TOKENIZER


def refuses(source: Path, message: str, weights: str = "fp32") -> None:
    """`message` is a regular expression that the one line must match."""
    folder = source.parent
    before = sorted(folder.rglob("*"))
    outcome = run_export(source, folder / "parent" / "out", "--weights", weights)
    assert outcome.code == 1
    assert outcome.stderr.startswith("reasoning-rpc-export: ") and outcome.stderr.count("\n") == 1
    assert re.search(message, outcome.stderr), outcome.stderr
    assert sorted(folder.rglob("*")) == before


@pytest.fixture
def source(rng: np.random.Generator, tmp_path: Path) -> Path:
    return write_huggingface(make_model(rng, "llama"), tmp_path / "model")


def change_config(source: Path, **changes: object) -> None:
    config = json.loads((source / "config.json").read_text())
    write_json(source / "config.json", config | changes)


def change_weights(source: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    weights = load_file(source / "model.safetensors")
    change(weights)
    save_file(weights, source / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mixtral"}, r"model family 'mixtral' is not supported \(supported: llama, qwen2\)"),
        ({"model_type": None}, "model family None is not supported"),
        ({"model_type": ["llama"]}, "is not supported"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures must be a list with LlamaForCausalLM"),
        ({"architectures": 7}, "architectures must be"),
        ({"hidden_act": "gelu"}, 'hidden_act = "gelu" is not supported'),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not supported"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config = .*awq.* is not supported"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types must be full_attention"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope scaling type 'yarn' is not supported"),
        ({"rope_scaling": "yarn"}, "rope_scaling must be an object, found 'yarn'"),
        ({"num_attention_heads": 3}, "3 query heads are not a multiple of 2 KV heads"),
        ({"head_dim": 15}, "head_dim 15 is odd"),
        ({"hidden_size": None}, "config.json: hidden_size must be an integer from 1 to 16777216, found None"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be an integer from 1"),
        ({"num_hidden_layers": 3}, r"tensor model.layers.2.input_layernorm.weight is missing"),
        ({"num_hidden_layers": 1}, r"tensor model.layers.1.\S+ is not part of the llama architecture as configured"),
        ({"num_hidden_layers": 16777216}, r"tensor model.layers.2.input_layernorm.weight is missing"),
        ({"vocab_size": 2**40}, "vocab_size must be an integer"),
        ({"vocab_size": 95}, r"tensor model.embed_tokens.weight: expected shape \[95, 64\], found \[96, 64\]"),
        ({"intermediate_size": 97}, r"mlp.gate_proj.weight: expected shape \[97, 64\], found \[96, 64\]"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps must be a positive number, found 'small'"),
        ({"rope_theta": -1}, "rope_theta must be a positive number, found -1"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
        ({"attention_bias": True}, r"tensor model.layers.0.self_attn.q_proj.bias is missing"),
        ({"eos_token_id": "stop"}, "eos_token_id must be a token id or a list of them"),
        ({"eos_token_id": [2, 96]}, "stop token 96 is outside the vocabulary of 96"),
        ({"eos_token_id": -1}, "stop token -1 is outside the vocabulary"),
    ],
)
def test_config(changes: dict, message: str, source: Path):
    change_config(source, **changes)
    refuses(source, message)


def test_sliding_window_of_qwen2(rng: np.random.Generator, tmp_path: Path):
    source = write_huggingface(make_model(rng, "qwen2", use_sliding_window=True), tmp_path / "model")
    refuses(source, "use_sliding_window = true is not supported")
    change_config(source, use_sliding_window=False)
    export_to(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("lm_head.weight"), "tensor lm_head.weight is missing"),
        (lambda w: w.update({"model.norm.weight": np.ones(65, np.float32)}), r"expected shape \[64\], found \[65\]"),
        (
            lambda w: w.update({"model.norm.weight": np.ones((64, 1), np.float32)}),
            r"expected shape \[64\], found \[64, 1\]",
        ),
        (lambda w: w.update({"model.norm.weight": np.ones(64)}), "tensor model.norm.weight: type F64 is not supported"),
        (lambda w: w.update({"model.norm.weight": np.ones(64, np.int8)}), "type I8 is not supported"),
        (lambda w: w.update({"model.layers.0.mlp.up_proj.lora_A": np.ones(4)}), "lora_A is not part of the llama"),
    ],
)
def test_tensors(change: Callable, message: str, source: Path):
    change_weights(source, change)
    refuses(source, message)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_weights_that_are_not_finite(value: float, weights: str, source: Path):
    def spoil(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 40] = value

    change_weights(source, spoil)
    refuses(source, "tensor model.layers.1.mlp.up_proj.weight: holds values that are not finite", weights)


def test_widths_that_are_no_multiple_of_a_block(rng: np.random.Generator, tmp_path: Path):
    source = write_huggingface(make_model(rng, "llama", intermediate_size=72), tmp_path / "model")
    refuses(source, "mlp.down_proj reads 72 values, not a multiple of the block of 32", "int4")
    export_to(source, tmp_path / "out", "fp32")


# Files and paths


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "config.json: not valid JSON"),
        (b"[1]", "config.json: expected a JSON object, found list"),
        (b"\xff", "config.json: not valid JSON"),
        (b"[" * 100000, "config.json: not valid JSON"),
    ],
)
def test_bad_json(content: bytes, message: str, source: Path):
    (source / "config.json").write_bytes(content)
    refuses(source, message)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_bad_json_beside_the_weights(name: str, source: Path):
    (source / name).write_text("{'no': 'json'}")
    refuses(source, f"{name}: not valid JSON")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", {"eos_token": "<none>"}, "eos_token '<none>' is not in tokenizer.json"),
        ("tokenizer_config.json", {"eos_token": 3}, "eos_token must be a string or an object with content"),
        ("tokenizer_config.json", {"add_bos_token": 1}, "add_bos_token must be true or false"),
        ("tokenizer_config.json", {"chat_template": 5}, "chat_template must be a string"),
        ("tokenizer.json", {"added_tokens": [1]}, "added_tokens must be a list of objects"),
        ("generation_config.json", {"temperature": "hot"}, "temperature must be a number, found 'hot'"),
        ("generation_config.json", {"top_p": float("nan")}, "top_p must be a number"),
    ],
)
def test_tokenizer_and_generation_settings(name: str, content: dict, message: str, source: Path):
    write_json(source / "tokenizer.json", TOKENIZER)
    write_json(source / name, content)
    refuses(source, f"{name}.*{message}|{message}")


def test_missing_files(source: Path):
    (source / "model.safetensors").rename(source / "weights.safetensors")
    refuses(source, r"model.safetensors: no such file")
    (source / "config.json").unlink()
    refuses(source, r"config.json: no such file")
    refuses(source / "nothing", r"nothing: no such file or folder")


@pytest.mark.parametrize("entry", ["../outside.safetensors", "/outside.safetensors", "sub/../../outside.safetensors"])
def test_shards_outside_the_folder(entry: str, rng: np.random.Generator, tmp_path: Path):
    source = write_huggingface(make_model(rng, "llama"), tmp_path / "model", shards=2)
    index = json.loads((source / "model.safetensors.index.json").read_text())
    name = next(iter(index["weight_map"]))
    (source / index["weight_map"][name]).rename(tmp_path / "outside.safetensors")
    index["weight_map"][name] = entry
    write_json(source / "model.safetensors.index.json", index)
    refuses(source, "outside.safetensors: leads outside the model folder")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_links_that_leave_the_folder(name: str, source: Path):
    (source / name).rename(source.parent / name)
    (source / name).symlink_to(source.parent / name)
    refuses(source, f"{name}: leads outside the model folder")


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({}, "weight_map must be an object"),
        ([], "weight_map must be an object"),
        ({"model.norm.weight": 3}, "weight_map model.norm.weight must be a file name, found 3"),
        ({"model.norm.weight": "none.safetensors"}, "none.safetensors: no such file"),
        ({"model.other.weight": "model.safetensors"}, "tensor model.other.weight is missing, though"),
    ],
)
def test_bad_index(weight_map: object, message: str, source: Path):
    write_json(source / "model.safetensors.index.json", {"weight_map": weight_map})
    refuses(source, message)


def damaged_headers(data: bytes) -> dict[str, bytes]:
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["model.norm.weight"]["data_offsets"][1] += 4

    def with_header(text: bytes) -> bytes:
        return len(text).to_bytes(8, "little") + text + data[8 + size :]

    return {
        "empty": b"",
        "short": data[:5],
        "truncated header": data[: size // 2],
        "truncated data": data[:-100],
        "longer": data + b"\0" * 64,
        "giant header": (1 << 62).to_bytes(8, "little") + data[8:],
        "no json": with_header(b"{" * size),
        "offsets": with_header(json.dumps(header).encode()),
    }


@pytest.mark.parametrize(
    "damage",
    ["empty", "short", "truncated header", "truncated data", "longer", "giant header", "no json", "offsets"],
)
def test_damaged_safetensors(damage: str, source: Path):
    path = source / "model.safetensors"
    path.write_bytes(damaged_headers(path.read_bytes())[damage])
    refuses(source, "model.safetensors: not a readable safetensors file")


# GGUF


@pytest.fixture
def gguf_source(rng: np.random.Generator, tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return write_gguf(
        make_model(rng, "llama"), tmp_path / "in" / "model.gguf", rng, "Q4_0", tokenizer_metadata("gpt-2")
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable GGUF file"),
        (b"GGU", "truncated"),
        (b"GGML" + bytes(100), "does not begin with GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1; 2 and 3 are supported"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "truncated"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "truncated"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63), "truncated"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 77), "metadata type 77 is unknown"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 8, 2**61), "truncated"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"\xff" + struct.pack("<II", 4, 0), "not a readable GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "model family None is not supported"),
    ],
)
def test_damaged_gguf(content: bytes, message: str, tmp_path: Path):
    (tmp_path / "model.gguf").write_bytes(content)
    refuses(tmp_path / "model.gguf", message)


def test_gguf_truncated_anywhere(gguf_source: Path, rng: np.random.Generator):
    data = gguf_source.read_bytes()
    for length in [len(data) - 1, *rng.integers(1, len(data), 10).tolist()]:
        gguf_source.write_bytes(data[:length])
        refuses(gguf_source, "truncated")


def test_gguf_with_damaged_bytes(gguf_source: Path, rng: np.random.Generator):
    """Random damage in the header either goes unnoticed (a text) or is refused in one line; nothing else happens."""
    data = bytearray(gguf_source.read_bytes())
    for _ in range(60):
        damaged = bytearray(data)
        for position in rng.integers(0, 3000, 3):
            damaged[position] = rng.integers(256)
        gguf_source.write_bytes(damaged)
        dest = gguf_source.parent / "out"
        outcome = run_export(gguf_source, dest, "--weights", "int4")
        assert outcome.code in (0, 1)
        assert outcome.stderr.count("\n") == outcome.code
        assert dest.exists() == (outcome.code == 0)
        dest.exists() and dest.rename(gguf_source.parent.parent / f"done-{time.monotonic_ns()}")
        assert list(gguf_source.parent.iterdir()) == [gguf_source]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"tokenizer.ggml.pre": ("chameleon", STRING)}, "pre-tokenizer 'chameleon' is not supported"),
        ({"tokenizer.ggml.model": ("llama", STRING)}, "tokenizer model 'llama' is not supported"),
        ({"tokenizer.ggml.tokens": (["a", "b", "ab", "a"], ARRAY, STRING)}, "4 tokens and 7 token types"),
        ({"tokenizer.ggml.tokens": (["a", "b", "ab", "a", "c", "d", "e"], ARRAY, STRING)}, "token 'a' appears twice"),
        ({"tokenizer.ggml.token_type": (["x"] * 7, ARRAY, STRING)}, "token_type must be a list of int"),
        ({"tokenizer.ggml.merges": (["a c"], ARRAY, STRING)}, "merge 'a c' does not join two tokens to a third"),
        ({"tokenizer.ggml.merges": (["ab"], ARRAY, STRING)}, "merge 'ab' does not join"),
        ({"tokenizer.ggml.eos_token_id": (96, UINT32)}, "stop token 96 is outside the vocabulary of 96"),
        ({"tokenizer.ggml.bos_token_id": (-1, INT32)}, "bos_token_id must be an integer from 0"),
        ({"tokenizer.chat_template": (1, UINT32)}, "chat_template must be a string, found 1"),
        ({"llama.rope.scaling.type": ("yarn", STRING)}, "rope scaling type 'yarn' is not supported"),
        ({"llama.expert_count": (8, UINT32)}, "expert_count = 8 is not supported"),
        ({"llama.rope.dimension_count": (8, UINT32)}, "rope.dimension_count 8 differs from head_dim 16"),
        ({"llama.vocab_size": (97, UINT32)}, r"tensor token_embd.weight: expected shape \[97, 64\], found \[96, 64\]"),
    ],
)
def test_gguf_metadata(metadata: dict, message: str, rng: np.random.Generator, tmp_path: Path):
    path = tmp_path / "model.gguf"
    write_gguf(make_model(rng, "llama"), path, rng, metadata=tokenizer_metadata("gpt-2") | metadata)
    refuses(path, message)


def test_gguf_of_another_family(rng: np.random.Generator, tmp_path: Path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refuses(tmp_path / "model.gguf", r"model family 'mamba' is not supported \(supported: llama, qwen2\)")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"blk.0.attn_q_norm.weight": np.ones(16, np.float32)}, "attn_q_norm.weight is not part of the llama"),
        ({"blk.0.ffn_gate_exps.weight": np.ones((2, 4, 4), np.float32)}, "ffn_gate_exps.weight is not part of"),
        ({"rope_freqs.weight": np.ones(7, np.float32)}, r"rope_freqs.weight: expected shape \[8\], found \[7\]"),
        ({"rope_freqs.weight": np.zeros(8, np.float32)}, "rope_freqs.weight: holds values that are not positive"),
        ({"rope_freqs.weight": np.ones(8, np.int32)}, "rope_freqs.weight: type I32 is not supported"),
    ],
)
def test_gguf_tensors(tensors: dict, message: str, rng: np.random.Generator, tmp_path: Path):
    write_gguf(make_model(rng, "llama"), tmp_path / "model.gguf", rng, tensors=tensors)
    refuses(tmp_path / "model.gguf", message)


def test_gguf_missing_tensor(rng: np.random.Generator, tmp_path: Path):
    model = make_model(rng, "llama")
    del model.weights["model.layers.1.self_attn.k_proj.weight"]
    write_gguf(model, tmp_path / "model.gguf", rng)
    refuses(tmp_path / "model.gguf", "tensor model.layers.1.self_attn.k_proj.weight is missing")


# The destination


def test_destinations_that_are_not_ours(source: Path, tmp_path: Path):
    dest = tmp_path / "dest"
    dest.mkdir()
    (dest / "notes.txt").write_text("mine")
    assert "is not empty and not an earlier export" in run_export(source, dest).stderr
    (dest / "manifest.json").write_text('{"format": "something else"}')
    assert run_export(source, dest).code == 1
    assert sorted(path.name for path in dest.iterdir()) == ["manifest.json", "notes.txt"]
    assert "exists and is not a folder" in run_export(source, dest / "notes.txt").stderr
    assert run_export(source, source).code == 1
    assert run_export(source, tmp_path).code == 1
    assert (source / "model.safetensors").is_file()


def test_a_source_inside_an_earlier_export_is_safe(source: Path, tmp_path: Path):
    dest = tmp_path / "dest"
    export_to(source, dest)
    source.rename(dest / "model")
    outcome = run_export(dest / "model", dest)
    assert outcome.code == 1 and "holds the source" in outcome.stderr
    assert (dest / "model" / "model.safetensors").is_file()


def test_a_failed_export_leaves_the_earlier_one(source: Path, tmp_path: Path):
    dest = tmp_path / "dest"
    export_to(source, dest)
    before = {path.name: path.read_bytes() for path in dest.iterdir()}

    def spoil(tensors: dict[str, np.ndarray]) -> None:
        tensors["lm_head.weight"][-1, -1] = np.nan  # the last tensor that is written

    change_weights(source, spoil)
    assert run_export(source, dest, "--weights", "int4").code == 1
    assert {path.name: path.read_bytes() for path in dest.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dest", "model"]


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_export_leaves_nothing(signal_number: int, rng: np.random.Generator, tmp_path: Path):
    model = make_model(rng, "llama", hidden_size=1024, intermediate_size=8192, num_hidden_layers=3)
    source = write_huggingface(model, tmp_path / "model", "F16")
    command = [sys.executable, "-m", "reasoning_rpc_export.cli", str(source), str(tmp_path / "out")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.partial-*/model.onnx.data")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal_number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal_number, stderr
    assert stderr == b""
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_is_named(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from reasoning_rpc_export.weights_file import WeightsFile

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(WeightsFile, "_write", full)
    outcome = run_export(source, tmp_path / "out", "--weights", "fp32")
    assert outcome == Outcome(1, "reasoning-rpc-export: [Errno 28] No space left on device\n")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_hostile_names_stay_on_one_line(source: Path):
    change_weights(source, lambda weights: weights.update({"bad\n\x1b[31mname": np.ones(1, np.float32)}))
    refuses(source, r"tensor bad \\x1b\[31mname is not part of")
