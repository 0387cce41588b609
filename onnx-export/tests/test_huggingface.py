"""What the manifest and the files beside the graph say about a Hugging Face folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import export_to, run_export
from safetensors.numpy import load_file, save_file
from synthetic import make_model, write_huggingface, write_json

VOCAB = {"a": 0, "b": 1, "ab": 2}
ADDED = [
    {"id": 3, "content": "<s>", "special": True},
    {"id": 4, "content": "</s>", "special": True},
    {"id": 5, "content": "<|eot|>", "special": True},
]
TOKENIZER = {"model": {"type": "BPE", "vocab": VOCAB, "merges": []}, "added_tokens": ADDED, "post_processor": None}


@pytest.fixture
def source(rng: np.random.Generator, tmp_path: Path) -> Path:
    return write_huggingface(make_model(rng, "llama"), tmp_path / "tiny-llama")


def test_a_bare_folder(source: Path, tmp_path: Path):
    manifest = export_to(source, tmp_path / "out", "int8", "portable")
    weights = load_file(source / "model.safetensors")
    files = manifest.pop("files")
    assert isinstance(manifest.pop("exporter"), str)
    assert manifest == {
        "format": "reasoning-rpc-model",
        "graph_contract": 2,
        "flavour": "portable",
        "weights": "int8",
        "architecture": "llama",
        "source": {"kind": "huggingface", "name": "tiny-llama"},
        "dimensions": {
            "num_layers": 2,
            "num_heads": 4,
            "num_kv_heads": 2,
            "head_dim": 16,
            "hidden_size": 64,
            "intermediate_size": 96,
            "vocab_size": 96,
            "max_positions": 256,
            "parameters": sum(weight.size for weight in weights.values()),
        },
        "tokens": {"bos": None, "eos": None, "add_bos": False, "stop": []},
        "generation": {},
    }
    assert set(files) == {"model.onnx", "model.onnx.data"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*files, "manifest.json"}
    for name, entry in files.items():
        content = (tmp_path / "out" / name).read_bytes()
        assert entry == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_tokenizer_template_and_generation(source: Path, tmp_path: Path):
    text = json.dumps(TOKENIZER, indent=1).encode()
    (source / "tokenizer.json").write_bytes(text)
    tokens = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": True}
    write_json(source / "tokenizer_config.json", tokens | {"chat_template": "{{ messages }}é"})
    generation = {"temperature": 0.6, "top_p": 0.95, "top_k": 40, "min_p": 0.0, "repetition_penalty": 1.1}
    generation["do_sample"] = True
    write_json(source / "generation_config.json", {**generation, "eos_token_id": [5, 4], "max_length": 7})
    config = json.loads((source / "config.json").read_text())
    write_json(source / "config.json", config | {"eos_token_id": 2, "bos_token_id": 0})
    manifest = export_to(source, tmp_path / "out")
    assert manifest["tokens"] == {"bos": 3, "eos": 4, "add_bos": True, "stop": [2, 4, 5]}
    assert manifest["generation"] == generation
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == text
    assert (tmp_path / "out" / "chat_template.jinja").read_text(encoding="utf-8") == "{{ messages }}é"
    assert set(manifest["files"]) == {"model.onnx", "model.onnx.data", "tokenizer.json", "chat_template.jinja"}


def test_template_file_wins_and_named_templates(source: Path, tmp_path: Path):
    templates = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    write_json(source / "tokenizer_config.json", {"chat_template": templates})
    export_to(source, tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "plain"
    (source / "chat_template.jinja").write_text("from the file\n")
    export_to(source, tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "from the file\n"


TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
}


@pytest.mark.parametrize(
    ("processor", "add_bos_token", "expected"),
    [
        (TEMPLATE, None, True),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, TEMPLATE]}, None, True),
        ({"type": "ByteLevel"}, None, False),
        (None, None, False),
        (TEMPLATE, False, False),
        (None, True, True),
    ],
)
def test_add_bos(processor: dict | None, add_bos_token: bool | None, expected: bool, source: Path, tmp_path: Path):
    """tokenizer_config.json says it; where it is silent (as Llama 3's), the tokenizer's own post-processor does."""
    write_json(source / "tokenizer.json", TOKENIZER | {"post_processor": processor})
    settings = {"bos_token": "<s>"} | ({} if add_bos_token is None else {"add_bos_token": add_bos_token})
    write_json(source / "tokenizer_config.json", settings)
    assert export_to(source, tmp_path / "out")["tokens"] == {"bos": 3, "eos": None, "add_bos": expected, "stop": []}


def test_rope_parameters_of_newer_configs(source: Path, tmp_path: Path):
    config = json.loads((source / "config.json").read_text())
    old = export_to(source, tmp_path / "old")
    del config["rope_theta"]
    write_json(source / "config.json", config | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}})
    assert export_to(source, tmp_path / "new") == old


def test_an_earlier_export_is_replaced_whole(source: Path, tmp_path: Path):
    write_json(source / "tokenizer.json", TOKENIZER)
    export_to(source, tmp_path / "out", "fp32", "portable")
    (source / "tokenizer.json").unlink()
    manifest = export_to(source, tmp_path / "out", "int4")
    assert manifest["weights"] == "int4" and "tokenizer.json" not in manifest["files"]
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"tiny-llama", "out"}


def test_an_empty_folder_and_missing_parents(source: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    export_to(source, tmp_path / "empty")
    export_to(source, tmp_path / "some" / "deep" / "folder")
    assert (tmp_path / "some" / "deep" / "folder" / "manifest.json").is_file()


def test_harmless_extra_tensors(source: Path, tmp_path: Path):
    weights = load_file(source / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    save_file(weights, source / "model.safetensors")
    export_to(source, tmp_path / "out")


def test_version_and_usage():
    assert run_export().code == 2
    assert run_export("source").code == 2
    assert run_export("source", "dest", "--weights", "int3").code == 2
    assert "--weights" in run_export("source", "dest", "--weights", "int3").stderr
