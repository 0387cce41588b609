"""The library of this repository, through its C ABI."""

from __future__ import annotations

import ctypes
import os
import sys
from ctypes import POINTER, byref, c_char_p, c_float, c_size_t, c_uint32, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from ..saved_sequence import SavedSequence
from .base import Engine as Base
from .base import Unsupported, prompt

ROOT = Path(__file__).resolve().parents[4]
sys.path.insert(0, str(ROOT / "tests/abi"))
import rrpc  # noqa: E402

rrpc.FALLIBLE.update(
    sequence_save=[c_void_p, c_char_p, c_size_t, POINTER(c_size_t)],
    sequence_restore=[c_void_p, c_char_p, c_size_t, POINTER(c_void_p)],
    sequence_reserve=[c_void_p, c_size_t],
)
DTYPES = {"f32": 1, "f16": 2, "bf16": 3, "i8": 4}
POLICIES = {"none": 0, "rpc": 1}
SEED_TOKENS = 256


class Engine(Base):
    """Settings: cache (one of DTYPES), policy (one of POLICIES), interval, window, ratio, entries (in place of it)."""

    def __init__(
        self,
        model: str,
        threads: int,
        cache: str = "f16",
        policy: str = "none",
        interval: int = 1024,
        window: int = 32,
        ratio: int = 4,
        entries: int = 0,
    ) -> None:
        os.environ.setdefault("RRPC_ONNXRUNTIME", str(ROOT / "third_party/onnxruntime/libonnxruntime.so"))
        self.library = rrpc.Library()
        options = rrpc.EngineOptions()
        self.library.engine_options_init(byref(options), ctypes.sizeof(options))
        options.threads = threads
        options.cache_dtype = DTYPES[cache]
        options.verify_weights = 0
        # Address space, until it is used.
        options.budget_bytes = 12 << 30
        self.engine = c_void_p()
        try:
            self.library.engine_open(model.encode(), byref(options), byref(self.engine))
        except rrpc.Error as error:
            if error.code == 1 and "cache_dtype" in str(error):
                raise Unsupported(str(error)) from None
            raise
        self.engine_info = rrpc.EngineInfo()
        self.library.engine_get_info(self.engine, byref(self.engine_info))
        self.settings = {"policy": POLICIES[policy], "interval": interval, "window": window, "ratio": ratio}
        self.settings |= {"budget_entries": entries}
        self.rows: list[c_void_p] = []
        self.array: Any = None
        self.seed: bytes | None = None

    def create(self) -> c_void_p:
        options = rrpc.SequenceOptions()
        self.library.sequence_options_init(self.engine, byref(options), ctypes.sizeof(options))
        for name, value in self.settings.items():
            setattr(options, name, value)
        options.temperature, options.repetition_penalty = 0.0, 1.0
        sequence = c_void_p()
        self.library.sequence_create(self.engine, byref(options), byref(sequence))
        return sequence

    def run_prompt(self, sequence: c_void_p, tokens: int) -> None:
        ids = (c_uint32 * tokens)(*prompt(tokens).tolist())
        self.library.sequence_append_tokens(sequence, ids, tokens)
        row = (c_void_p * 1)(sequence)
        while self.library.number(self.library.sequence_pending, sequence) > 0:
            self.library.step(row, 1)

    def prefill(self, tokens: int) -> np.ndarray:
        self.clear()
        sequence = self.create()
        self.run_prompt(sequence, tokens)
        logits, count = POINTER(c_float)(), c_size_t()
        self.library.sequence_logits(sequence, byref(logits), byref(count))
        logits = np.ctypeslib.as_array(logits, shape=(count.value,)).copy()
        self.library.sequence_free(sequence)
        return logits

    def clear(self) -> None:
        for row in self.rows:
            self.library.sequence_free(row)
        self.rows = []

    def release(self) -> None:
        self.clear()

    def fill(self, rows: int, length: int, given: int | None = None) -> None:
        """`length` counts tokens of the text; with a policy that drops entries, those behind `given` are generated."""
        self.clear()
        if self.seed is None:
            sequence = self.create()
            self.run_prompt(sequence, SEED_TOKENS)
            size = self.library.number(self.library.sequence_save, sequence, None, 0)
            saved = ctypes.create_string_buffer(size)
            self.library.sequence_save(sequence, saved, size, byref(c_size_t()))
            self.library.sequence_free(sequence)
            self.seed = saved.raw
        info = self.engine_info
        saved = SavedSequence(self.seed, info.layers, info.heads, info.kv_heads, info.head_dim, info.vocab)
        blob = saved.stretched(length, length if given is None else given)
        for _ in range(rows):
            row = c_void_p()
            self.library.sequence_restore(self.engine, blob, len(blob), byref(row))
            self.rows.append(row)
        self.array = (c_void_p * rows)(*self.rows)

    def step(self) -> None:
        token = c_uint32()
        for row in self.rows:
            self.library.sequence_sample(row, byref(token))
        self.library.step(self.array, len(self.rows))

    def stats(self) -> dict[str, float]:
        """Of the first row, since its text began; seconds of steps and of what lies in them, since the engine opened."""
        stats = rrpc.Stats()
        self.library.sequence_get_stats(self.rows[0], byref(stats))
        names = ["compressions", "compaction_seconds", "cache_bytes", "cache_peak_bytes", "cache_uncompressed_bytes"]
        metrics = rrpc.Metrics()
        self.library.engine_get_metrics(self.engine, byref(metrics))
        inside = ["step_seconds", "attention_seconds", "product_seconds"]
        return {name: getattr(stats, name) for name in names} | {name: getattr(metrics, name) for name in inside}

    def info(self) -> dict[str, Any]:
        dll = self.library.dll
        dll.rrpc_version.restype = c_char_p
        return {"version": dll.rrpc_version().decode(), "simd": self.engine_info.simd.decode()}
