"""OpenVINO's paged attention, the model of OpenVINO GenAI's pipeline, driven here with a block table of ours.

The pipeline reaches a long cache by its prefill alone, which takes minutes; its steps cost what these do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
from openvino import opset15 as op
from openvino._offline_transformations import paged_attention_transformation

from .base import Engine as Base
from .base import prompt
from .openvino_sdpa import properties

BLOCK = 32
SEED_TOKENS = 256
CHUNK = 512  # tokens of a prompt that run at once


def chosen_rows_only(model: ov.Model) -> None:
    """Logits of the tokens that sampled_tokens_indices names, as openvino_genai rewrites the models that it opens."""
    head = model.output("logits").get_node().input_value(0).get_node()
    indices = op.parameter([-1], ov.Type.i64)
    indices.set_friendly_name("sampled_tokens_indices")
    indices.output(0).get_tensor().set_names({"sampled_tokens_indices"})
    rows = op.gather(head.input_value(0), indices, op.constant(np.array([0], np.int64)))
    head.input(0).replace_source_output(rows.output(0))
    model.add_parameters([indices])
    model.validate_nodes_and_infer_types()


class Engine(Base):
    """Settings: cache (f16, u8)."""

    def __init__(self, model: str, threads: int, cache: str = "f16") -> None:
        core = ov.Core()
        decoder = core.read_model(f"{model}/openvino_model.xml")
        paged_attention_transformation(decoder, False, False, False)
        decoder.validate_nodes_and_infer_types()
        chosen_rows_only(decoder)
        self.compiled = core.compile_model(decoder, "CPU", properties(threads, cache))
        self.request = self.compiled.create_infer_request()
        self.shapes = {
            name: (list(port.get_partial_shape()), port.get_element_type())
            for port in self.compiled.inputs
            for name in port.get_names()
            if name.startswith(("key_cache.", "value_cache."))
        }
        self.caches: dict[str, np.ndarray] = {}
        self.seed: dict[str, np.ndarray] = {}
        self.rows, self.length, self.blocks = 1, 0, 0

    def allocate(self, rows: int, entries: int) -> None:
        self.rows, self.length = rows, 0
        self.blocks = -(-entries // BLOCK)
        self.caches = {}
        for name, (shape, kind) in self.shapes.items():
            dims = [rows * self.blocks, *(dim.get_length() for dim in shape[1:])]
            self.caches[name] = np.zeros(dims, kind.to_dtype())
            self.request.set_tensor(name, ov.Tensor(self.caches[name], shared_memory=True))

    def run(self, ids: np.ndarray) -> np.ndarray:
        """ids [B, T] behind what there is -> logits [B, vocab]."""
        rows, new = ids.shape
        total = self.length + new
        used = -(-total // BLOCK)
        table = np.arange(rows, dtype=np.int32)[:, None] * self.blocks + np.arange(used, dtype=np.int32)
        self.request.infer(
            {
                "input_ids": ids.reshape(-1),
                "position_ids": np.tile(np.arange(self.length, total), rows),
                "past_lens": np.full(rows, self.length, np.int32),
                "subsequence_begins": np.arange(0, rows * new + 1, new, dtype=np.int32),
                "block_indices": table.reshape(-1),
                "block_indices_begins": np.arange(0, rows * used + 1, used, dtype=np.int32),
                "max_context_len": np.array(total, np.int32),
                "sampled_tokens_indices": np.arange(new - 1, rows * new, new),
            }
        )
        self.length = total
        return self.request.get_tensor("logits").data.reshape(rows, -1)

    def release(self) -> None:
        self.allocate(1, BLOCK)

    def prefill(self, tokens: int) -> np.ndarray:
        self.allocate(1, tokens)
        ids = prompt(tokens)[None]
        for start in range(0, tokens, CHUNK):
            logits = self.run(ids[:, start : start + CHUNK])
        return logits[0]

    def fill(self, rows: int, length: int) -> None:
        if not self.seed:
            self.prefill(SEED_TOKENS)
            self.seed = {name: cache[: SEED_TOKENS // BLOCK].copy() for name, cache in self.caches.items()}
        self.allocate(rows, length + self.SPARE)
        for name, cache in self.caches.items():
            seed = self.seed[name]
            for start in range(0, len(cache), len(seed)):
                part = cache[start : start + len(seed)]
                part[:] = seed[: len(part)]
        self.length = length
        self.next = np.ones((rows, 1), np.int64)

    def step(self) -> None:
        self.next = self.run(self.next).argmax(axis=-1)[:, None]

    def info(self) -> dict[str, Any]:
        return {"version": ov.get_version()}
