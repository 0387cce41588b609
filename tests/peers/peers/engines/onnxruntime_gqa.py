"""Plain ONNX Runtime with its GroupQueryAttention; past and present are one buffer."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort

from .base import Engine as Base
from .base import prompt

SEED_TOKENS = 256
CHUNK = 512


class Engine(Base):
    """Settings: none; the cache's type is the model's."""

    def __init__(self, model: str, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Without it denormals in K and V make decoding twice as slow.
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        self.session = ort.InferenceSession(f"{model}/model.onnx", options, providers=["CPUExecutionProvider"])
        self.pasts = {
            port.name: (port.shape, np.int8 if port.type == "tensor(int8)" else np.float32)
            for port in self.session.get_inputs()
            if port.name.startswith("past_key_values.")
        }
        self.binding = self.session.io_binding()
        self.caches: dict[str, np.ndarray] = {}
        self.seed: dict[str, np.ndarray] = {}
        self.rows, self.length = 1, 0

    def allocate(self, rows: int, entries: int) -> None:
        self.rows, self.length = rows, 0
        self.binding.clear_binding_inputs()
        self.binding.clear_binding_outputs()
        self.caches, self.values = {}, []
        for name, (shape, dtype) in self.pasts.items():
            cache = np.zeros((rows, shape[1], entries, shape[3]), dtype)
            value = ort.OrtValue.ortvalue_from_numpy(cache)  # a view
            self.values.append(value)
            self.caches[name] = cache
            self.binding.bind_ortvalue_input(name, value)
            self.binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
        self.binding.bind_output("logits")

    def run(self, ids: np.ndarray) -> np.ndarray:
        rows, new = ids.shape
        self.length += new
        self.binding.bind_cpu_input("input_ids", ids)
        self.binding.bind_cpu_input("attention_mask", np.ones((rows, self.length), np.int64))
        self.session.run_with_iobinding(self.binding)
        # Bound last.
        return self.binding.get_outputs()[-1].numpy()[:, -1]

    def release(self) -> None:
        self.allocate(1, 1)

    def prefill(self, tokens: int) -> np.ndarray:
        self.allocate(1, tokens)
        ids = prompt(tokens)[None]
        for start in range(0, tokens, CHUNK):
            logits = self.run(ids[:, start : start + CHUNK])
        return logits[0]

    def fill(self, rows: int, length: int) -> None:
        if not self.seed:
            self.prefill(SEED_TOKENS)
            self.seed = {name: cache.copy() for name, cache in self.caches.items()}
        self.allocate(rows, length + self.SPARE)
        for name, cache in self.caches.items():
            seed = self.seed[name]
            for start in range(0, length, SEED_TOKENS):
                part = cache[:, :, start : min(start + SEED_TOKENS, length)]
                part[:] = seed[:, :, : part.shape[2]]
        self.length = length
        self.next = np.ones((rows, 1), np.int64)

    def step(self) -> None:
        self.next = self.run(self.next).argmax(axis=-1)[:, None]

    def info(self) -> dict[str, Any]:
        return {"version": ort.__version__}
