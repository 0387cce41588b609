"""onnxruntime-genai over the graph that `onnxruntime_gqa` runs. It reaches a length by prefill alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as genai

from .base import Engine as Base
from .base import prompt

CHUNK = 512


class Engine(Base):
    """Settings: none."""

    def __init__(self, model: str, threads: int) -> None:
        config = genai.Config(model)
        options = {"intra_op_num_threads": threads, "session.set_denormal_as_zero": "1"}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self.model = genai.Model(config)
        self.vocab = json.loads((Path(model) / "genai_config.json").read_text())["model"]["vocab_size"]
        self.generator: Any = None
        self.filled = (0, 0)

    def start(self, rows: int, tokens: int, room: int) -> None:
        params = genai.GeneratorParams(self.model)
        params.set_search_options(
            max_length=tokens + room, batch_size=rows, do_sample=False, past_present_share_buffer=True, chunk_size=CHUNK
        )
        self.generator = None
        self.generator = genai.Generator(self.model, params)
        ids = np.tile(prompt(tokens).astype(np.int32), (rows, 1))
        self.generator.append_tokens(ids)

    def prefill(self, tokens: int) -> np.ndarray:
        self.start(1, tokens, 8)
        return np.asarray(self.generator.get_output("logits")).reshape(-1)[-self.vocab :]

    def fill(self, rows: int, length: int) -> None:
        if self.filled == (rows, length):
            return
        self.start(rows, length, 8192)
        self.filled = (rows, length)

    def release(self) -> None:
        self.generator, self.filled = None, (0, 0)

    def step(self) -> None:
        self.generator.generate_next_token()

    def info(self) -> dict[str, Any]:
        return {"version": genai.__version__}
