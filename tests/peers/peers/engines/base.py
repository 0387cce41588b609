"""What the benchmark asks of an engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np


class Unsupported(Exception):
    """This engine, or this version of it, cannot do what was asked; the text says why."""


class Engine(ABC):
    """A loaded model and the caches of some rows, each of the same length. Ids are fixed: times do not depend on them."""

    # The most steps after a `fill`.
    SPARE = 160

    @abstractmethod
    def __init__(self, model: str, threads: int, **settings: Any) -> None:
        """Loads a model that `models.py` wrote."""

    @abstractmethod
    def prefill(self, tokens: int) -> np.ndarray:
        """Runs `prompt(tokens)` in an empty cache: the logits behind it, float32 [vocab]."""

    def fill(self, rows: int, length: int) -> None:
        """Gives each of `rows` rows a cache of `length` entries, by whatever way is cheap."""
        raise Unsupported("a cache of any length")

    def step(self) -> None:
        """Decodes one token of each row: logits in host memory, the most probable id chosen."""
        raise Unsupported("steps of its own")

    def release(self) -> None:
        """Gives the caches' memory back, as far as the engine can."""

    def info(self) -> dict[str, Any]:
        return {}


def prompt(tokens: int) -> np.ndarray:
    """Ids of a prompt, int64 [tokens]: below 16,000, so that every vocabulary has them."""
    return np.random.default_rng(7).integers(1000, 16000, tokens)
