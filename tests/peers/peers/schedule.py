"""Reasoning path compression by the numbers: how many entries there are when, and what bytes predict.

When n times P and R more tokens are generated, the entries of all but the newest R are candidates. Either n * P / c of them
stay (arXiv 2505.13866), or a fixed number.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    interval: int  # P
    window: int  # R
    ratio: int | None = None  # c, or
    entries: int | None = None  # so many

    @property
    def first(self) -> int:
        """Intervals that have elapsed at the first compression."""
        return 1 if self.entries is None else self.entries // self.interval + 1

    def due_at(self, done: int) -> int:
        return (self.first + done) * self.interval + self.window

    def kept(self, done: int) -> int:
        return self.entries or (done + 1) * (self.interval // self.ratio)

    def compressions(self, generated: int) -> int:
        return max(0, max(0, generated - self.window) // self.interval - self.first + 1)

    def held(self, generated: int) -> int:
        """Generated entries in the cache once `generated` tokens are written."""
        done = self.compressions(generated)
        return generated if done == 0 else self.kept(done - 1) + self.window + generated - self.due_at(done - 1)

    def peak(self, generated: int) -> int:
        """The most generated entries up to there, each compression's moment before it included."""
        return max(self.held(token - 1) + 1 for token in range(1, generated + 1))

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
        return full / sum(weights + rows * entry * (given + self.held(token)) for token in tokens)
