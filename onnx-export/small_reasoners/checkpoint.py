"""A trained model as a Hugging Face folder: config, weights, and a tokenizer with one token per character."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import save_file

from .problems import CHARACTERS, END, END_ID

if TYPE_CHECKING:  # without JAX
    from .network import Parameters, Shape

MAX_POSITIONS = 4096


def write_checkpoint(folder: Path, parameters: Parameters, shape: Shape) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = vars(shape) | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "max_position_embeddings": MAX_POSITIONS,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "eos_token_id": END_ID,
    }
    for name, value in (
        ("config.json", config),
        ("tokenizer.json", tokenizer()),
        ("tokenizer_config.json", {"eos_token": END, "add_bos_token": False}),
        ("generation_config.json", {"do_sample": False, "eos_token_id": END_ID}),
    ):
        (folder / name).write_text(json.dumps(value, indent=1) + "\n")
    weights = {name: np.asarray(value, np.float32) for name, value in parameters.items()}
    save_file(weights, folder / "model.safetensors", {"format": "np"})


def tokenizer() -> dict:
    """tokenizer.json: byte-level BPE without merges. Every character here is printable ASCII, and its own token."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    end = {"id": END_ID, "content": END, "special": True, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {character: index for index, character in enumerate(CHARACTERS)} | {END: END_ID},
            "merges": [],
        },
    }
