"""OpenVINO GenAI's continuous batching: paged attention, with its cache eviction where it is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

from .base import Engine as Base
from .base import Unsupported, prompt
from .openvino_sdpa import properties

BLOCK = 32
MOST_TOKENS = 40960


class Engine(Base):
    """Settings: cache (f16, u8), evict (entries that eviction leaves; 0: none), batched (tokens of a step).

    A length is reached by running a prompt. With eviction the rows stay alive: from then on their caches are held at
    `evict` entries, whatever their texts' lengths.
    """

    def __init__(self, model: str, threads: int, cache: str = "f16", evict: int = 0, batched: int = 512) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.max_num_batched_tokens = batched
        scheduler.dynamic_split_fuse = True
        self.evict, self.batched = evict, batched
        if evict:
            scheduler.use_cache_eviction = True
            scheduler.cache_eviction_config = genai.CacheEvictionConfig(
                start_size=BLOCK,
                recent_size=4 * BLOCK,
                max_cache_size=evict,
                aggregation_mode=genai.AggregationMode.NORM_SUM,
            )
            # The last chunk of a prompt stands on what eviction left of it.
            scheduler.num_kv_blocks = 4 * (evict // BLOCK + batched // BLOCK + 2)
        tokenizer = genai.Tokenizer(f"{model}/source.gguf")
        options = {name: value for name, value in properties(threads, cache).items() if name != "PERFORMANCE_HINT"}
        self.pipeline = genai.ContinuousBatchingPipeline(model, tokenizer, scheduler, "CPU", **options)
        self.rows: list[Any] = []
        self.requests = 0

    def request(self, tokens: int, new_tokens: int) -> Any:
        config = genai.GenerationConfig()
        config.max_new_tokens = new_tokens
        config.ignore_eos = True
        config.do_sample = False
        self.requests += 1
        ids = ov.Tensor(prompt(tokens)[None])
        return self.pipeline.add_request(self.requests, ids, config)

    def finish(self) -> None:
        for row in self.rows:
            row.drop()
        self.rows = []
        if self.pipeline.has_non_finished_requests():
            self.pipeline.step()

    def prefill(self, tokens: int) -> np.ndarray:
        """No logits: this pipeline gives the first token alone, here as a one where it is."""
        self.finish()
        handle = self.request(tokens, 1)
        token = None
        while token is None:
            self.pipeline.step()
            if handle.can_read():
                token = next(iter(handle.read().values())).generated_ids[0]
        logits = np.zeros(token + 1, np.float32)
        logits[token] = 1
        return logits

    def fill(self, rows: int, length: int) -> None:
        if len(self.rows) == rows and self.evict:
            return
        self.finish()
        if self.evict:
            length = min(length, self.evict + 256)
        self.rows = [self.request(length, MOST_TOKENS) for _ in range(rows)]
        waiting = list(self.rows)
        while waiting:
            self.pipeline.step()
            waiting = [row for row in waiting if not row.can_read()]
        self.drain()

    def release(self) -> None:
        if not self.evict:
            self.finish()

    def drain(self) -> None:
        for row in self.rows:
            while row.can_read():
                row.read()

    def step(self) -> None:
        if not self.rows:
            raise Unsupported("a step before a prompt")
        self.pipeline.step()
        self.drain()

    def info(self) -> dict[str, Any]:
        return {"version": genai.__version__, "evict": self.evict}
