"""A trained model as a Hugging Face folder: config, weights, and a tokenizer with one token per character."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from reasoning_rpc_export.tokenizer import PreTokenizer, added_token, byte_level, byte_level_bpe
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
    vocab = {character: index for index, character in enumerate(CHARACTERS)} | {END: END_ID}
    return byte_level_bpe(vocab, [], [added_token(END_ID, END, special=True)], PreTokenizer((byte_level(False),)))
