"""llama.cpp through llama-cpp-python's ctypes functions."""

from __future__ import annotations

import ctypes
import struct
import tempfile
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from .base import Engine as Base
from .base import prompt

CACHES = {"f16": llama_cpp.GGML_TYPE_F16, "q8_0": llama_cpp.GGML_TYPE_Q8_0, "f32": llama_cpp.GGML_TYPE_F32}
SEED_TOKENS = 256
BATCH = 512


@llama_cpp.llama_log_callback
def _no_log(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
    pass


class Engine(Base):
    """Settings: cache (f16, q8_0), flash_attention."""

    def __init__(self, model: str, threads: int, cache: str = "f16", flash_attention: bool = True) -> None:
        llama_cpp.llama_log_set(_no_log, ctypes.c_void_p())
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(model.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"{model}: llama.cpp does not load it")
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.threads, self.cache, self.flash_attention = threads, cache, flash_attention
        self.context: Any = None
        self.batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self.folder = tempfile.TemporaryDirectory(prefix="peers-llama-")
        self.rows, self.length, self.next = 0, 0, [1]

    def open(self, entries: int, rows: int, unified: bool) -> None:
        """A context of `rows` sequences with room for `entries` each; a unified cache is one for all."""
        self.close()
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = entries if unified else entries * rows
        params.n_batch = params.n_ubatch = BATCH
        params.n_seq_max = rows
        params.kv_unified = unified
        params.n_threads = params.n_threads_batch = self.threads
        params.flash_attn_type = int(self.flash_attention)
        params.type_k = params.type_v = CACHES[self.cache]
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError(f"no context of {entries} entries")

    def release(self) -> None:
        self.close()

    def close(self) -> None:
        if self.context:
            llama_cpp.llama_free(self.context)
        self.context = None

    def run(self, tokens: list[tuple[int, int, int]], logits: list[int]) -> None:
        """One batch of (id, position, sequence); the places in `logits` get them."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for place, (token, position, sequence) in enumerate(tokens):
            batch.token[place] = token
            batch.pos[place] = position
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = sequence
            batch.logits[place] = 0
        for place in logits:
            batch.logits[place] = 1
        result = llama_cpp.llama_decode(self.context, batch)
        if result:
            raise RuntimeError(f"llama_decode: {result}")

    def run_prompt(self, tokens: int) -> None:
        ids = prompt(tokens).tolist()
        for start in range(0, tokens, BATCH):
            part = ids[start : start + BATCH]
            last = start + len(part) == tokens
            self.run([(token, start + i, 0) for i, token in enumerate(part)], [len(part) - 1] if last else [])

    def logits(self, place: int) -> np.ndarray:
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.context, place), shape=(self.vocab,))

    def prefill(self, tokens: int) -> np.ndarray:
        self.open(tokens + 32, 1, unified=True)
        self.run_prompt(tokens)
        return self.logits(-1)

    def fill(self, rows: int, length: int) -> None:
        path = Path(self.folder.name) / f"{length}"
        if not path.exists():
            self.save_long(length, path)
        # Rows of one text each have caches of their own: with a unified one each would attend over all.
        self.open(length + self.SPARE, rows, unified=False)
        count, ids = ctypes.c_size_t(), (llama_cpp.llama_token * 1)()
        with tempfile.NamedTemporaryFile(dir=self.folder.name) as file:
            file.write(self.apart(path.read_bytes(), rows))
            file.flush()
            for row in range(rows):
                size = llama_cpp.llama_state_seq_load_file(
                    self.context, file.name.encode(), row, ids, 1, ctypes.byref(count)
                )
                if not size:
                    raise RuntimeError(f"llama_state_seq_load_file: no state of {length} entries")
        self.rows, self.length, self.next = rows, length, [1] * rows

    def save_long(self, length: int, path: Path) -> None:
        """A sequence of `length` entries: a short one again and again, moved to later positions."""
        seed = min(SEED_TOKENS, length)
        self.open(length, 2, unified=True)
        self.run_prompt(seed)
        memory = llama_cpp.llama_get_memory(self.context)
        size = llama_cpp.llama_state_seq_get_size(self.context, 0)
        state = (ctypes.c_uint8 * size)()
        llama_cpp.llama_state_seq_get_data(self.context, state, size, 0)
        for start in range(seed, length, seed):
            llama_cpp.llama_state_seq_set_data(self.context, state, size, 1)
            llama_cpp.llama_memory_seq_add(memory, 1, 0, -1, start)
            if start + seed > length:
                llama_cpp.llama_memory_seq_rm(memory, 1, length, -1)
            llama_cpp.llama_memory_seq_cp(memory, 1, 0, -1, -1)
            llama_cpp.llama_memory_seq_rm(memory, 1, -1, -1)
        if llama_cpp.llama_memory_seq_pos_max(memory, 0) != length - 1:
            raise RuntimeError(f"{length} entries: the cache did not take them")
        llama_cpp.llama_state_seq_save_file(self.context, str(path).encode(), 0, (llama_cpp.llama_token * 1)(), 0)

    @staticmethod
    def apart(saved: bytes, rows: int) -> bytes:
        """A sequence's file for a context that keeps the caches of `rows` sequences apart.

        Behind magic, version and a count of tokens, which is 0, lie the number of such caches and each one's cells.
        """
        tokens, caches = struct.unpack_from("<II", saved, 8)
        if (tokens, caches) != (0, 1):
            raise RuntimeError(f"expected no tokens and one cache, found {tokens} and {caches}")
        return saved[:12] + struct.pack("<I", rows) + saved[16:] + bytes(4 * (rows - 1))

    def step(self) -> None:
        self.run([(token, self.length, row) for row, token in enumerate(self.next)], list(range(self.rows)))
        self.next = [int(self.logits(row).argmax()) for row in range(self.rows)]
        self.length += 1

    def info(self) -> dict[str, Any]:
        flags = llama_cpp.llama_print_system_info().decode()
        return {"version": llama_cpp.__version__, "system": flags.strip(" |")}
