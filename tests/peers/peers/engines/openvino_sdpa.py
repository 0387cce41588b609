"""OpenVINO's stateful decoder: its ScaledDotProductAttention with the cache inside the request."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
from openvino import opset15 as op

from .base import Engine as Base
from .base import prompt

SEED_TOKENS = 256


def properties(threads: int, cache: str) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "KV_CACHE_PRECISION": cache,
    }


def last_row_only(model: ov.Model) -> None:
    """Logits of the newest token alone, as openvino_genai rewrites the models that it opens."""
    head = model.output("logits").get_node().input_value(0).get_node()
    last = op.slice(head.input_value(0), *(op.constant(np.array([x], np.int64)) for x in (-1, 2**63 - 1, 1, 1)))
    head.input(0).replace_source_output(last.output(0))
    model.validate_nodes_and_infer_types()


class Engine(Base):
    """Settings: cache (f16, u8, f32)."""

    def __init__(self, model: str, threads: int, cache: str = "f16") -> None:
        core = ov.Core()
        decoder = core.read_model(f"{model}/openvino_model.xml")
        last_row_only(decoder)
        self.compiled = core.compile_model(decoder, "CPU", properties(threads, cache))
        self.request = self.compiled.create_infer_request()
        self.rows, self.length = 1, 0
        self.seed: dict[str, np.ndarray] = {}

    def run(self, ids: np.ndarray) -> np.ndarray:
        """ids [B, T] behind what there is -> logits [B, vocab]."""
        rows, new = ids.shape
        self.request.infer(
            {
                "input_ids": ids,
                "attention_mask": np.ones((rows, self.length + new), np.int64),
                "position_ids": np.tile(np.arange(self.length, self.length + new), (rows, 1)),
                "beam_idx": np.arange(rows, dtype=np.int32),
            }
        )
        self.length += new
        return self.request.get_tensor("logits").data[:, -1]

    def reset(self) -> None:
        self.request.reset_state()
        self.length = 0

    def release(self) -> None:
        # A request keeps the memory of its longest cache.
        self.request = self.compiled.create_infer_request()
        self.length = 0

    def prefill(self, tokens: int) -> np.ndarray:
        self.reset()
        return self.run(prompt(tokens)[None])[0]

    def fill(self, rows: int, length: int) -> None:
        if not self.seed:
            self.prefill(SEED_TOKENS)
            self.seed = {state.name: np.array(state.state.data) for state in self.request.query_state()}
        self.reset()
        order = np.arange(length) % SEED_TOKENS
        for state in self.request.query_state():
            long = self.seed[state.name][:, :, order]
            state.state = ov.Tensor(np.ascontiguousarray(np.repeat(long, rows, axis=0)))
        self.length = length
        self.next = np.ones((rows, 1), np.int64)

    def step(self) -> None:
        self.next = self.run(self.next).argmax(axis=-1)[:, None]

    def info(self) -> dict[str, Any]:
        names = ["INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION", "DYNAMIC_QUANTIZATION_GROUP_SIZE"]
        return {"version": ov.get_version()} | {name: str(self.compiled.get_property(name)) for name in names}
