"""manifest.json: what the engine has to know about an export before it opens the graph."""

from __future__ import annotations

import json
from pathlib import Path

from . import __version__
from .checkpoint import Checkpoint
from .graph import GRAPH_CONTRACT

FORMAT = "reasoning-rpc-model"
FILE = "manifest.json"


def write_manifest(folder: Path, checkpoint: Checkpoint, weights: str, flavour: str, files: dict[str, dict]) -> None:
    """`files`: name -> {size, sha256} of everything else in the folder."""
    config, tokens = checkpoint.config, checkpoint.tokens
    manifest = {
        "format": FORMAT,
        "graph_contract": GRAPH_CONTRACT,
        "flavour": flavour,
        "weights": weights,
        "architecture": config.family.name,
        "exporter": __version__,
        "source": {"kind": checkpoint.kind, "name": checkpoint.name},
        "dimensions": {
            "num_layers": config.num_layers,
            "num_heads": config.num_heads,
            "num_kv_heads": config.num_kv_heads,
            "head_dim": config.head_dim,
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "vocab_size": config.vocab_size,
            "max_positions": config.max_positions,
            "parameters": checkpoint.parameters,
        },
        "tokens": {"bos": tokens.bos, "eos": tokens.eos, "add_bos": tokens.add_bos, "stop": list(tokens.stop)},
        "generation": checkpoint.generation,
        "files": files,
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / FILE).write_text(text, encoding="utf-8")


def is_earlier_export(folder: Path) -> bool:
    try:
        return json.loads((folder / FILE).read_bytes())["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
