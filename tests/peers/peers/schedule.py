"""Reasoning path compression by the numbers: how many entries there are when, and what bytes predict.

Every P generated tokens, once R more are written, one in c of the older ones stays (arXiv 2505.13866).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    interval: int  # P
    window: int  # R
    ratio: int  # c

    def due_at(self, done: int) -> int:
        return (done + 1) * self.interval + self.window

    def compressions(self, generated: int) -> int:
        return max(0, generated - self.window) // self.interval

    def entries(self, generated: int) -> int:
        """Generated entries in the cache once `generated` tokens are written."""
        done = self.compressions(generated)
        return done * (self.interval // self.ratio) + generated - done * self.interval

    def samples(self, generated: int, count: int) -> list[int]:
        """The middles of `count` equal parts of an answer, each moved to the nearest middle between two compressions:
        what a cache that grows and shrinks holds on average there."""
        middle = self.window + self.interval // 2
        parts = [(index + 0.5) * generated / count for index in range(count)]
        return [round((part - middle) / self.interval) * self.interval + middle for part in parts]

    def predicted_ratio(self, generated: int, given: int, weights: float, entry: float, rows: int) -> float:
        """Bytes that an answer of `generated` tokens reads without compression over those that it reads with it."""
        tokens = range(generated)
        full = sum(weights + rows * entry * (given + token) for token in tokens)
        return full / sum(weights + rows * entry * (given + self.entries(token)) for token in tokens)
