"""Rotary position embedding: inverse frequencies per pair of a head, with the scalings that models ship with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .errors import ExportError


@dataclass(frozen=True)
class Rope:
    """`inv_freq` float32 [head_dim / 2]; cosine and sine are multiplied by `attention_factor`."""

    inv_freq: np.ndarray
    attention_factor: float = 1.0

    def caches(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosine and sine of positions start .. stop - 1, each float32 [stop - start, head_dim / 2].

        The angle is the float32 product of position and inverse frequency, as models were trained with; cosine and
        sine of that angle are exact to float32.
        """
        positions = np.arange(start, stop, dtype=np.float32)
        angles = (positions[:, None] * self.inv_freq[None, :]).astype(np.float64)
        factor = self.attention_factor
        return (np.cos(angles) * factor).astype(np.float32), (np.sin(angles) * factor).astype(np.float32)


def default_frequencies(theta: float, head_dim: int) -> np.ndarray:
    """theta ** (-2i / head_dim), float64 [head_dim / 2] (Su et al., arXiv 2104.09864)."""
    return theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)


def llama3_frequencies(
    frequencies: np.ndarray, factor: float, low_freq_factor: float, high_freq_factor: float, original_positions: float
) -> np.ndarray:
    """The scaling of Llama 3.1 (as Hugging Face transformers computes it for rope type `llama3`).

    Wavelengths above original_positions / low_freq_factor are stretched by `factor`, those below
    original_positions / high_freq_factor stay, and between the two the frequency is interpolated.
    """
    turns = original_positions * frequencies / (2 * math.pi)  # full turns inside the original context
    smooth = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0.0, 1.0)
    return (1 - smooth) * frequencies / factor + smooth * frequencies


def build_rope(theta: float, head_dim: int, scaling: dict | None) -> Rope:
    """`scaling` is Hugging Face's `rope_scaling` (or `rope_parameters`); its type is `rope_type`, formerly `type`."""
    frequencies = default_frequencies(theta, head_dim)
    scaling = scaling or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))

    def number(key: str) -> float:
        value = scaling.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ExportError(f"rope scaling {kind}: {key} must be a positive number, found {value!r}")
        return float(value)

    if kind == "linear":
        frequencies = frequencies / number("factor")
    elif kind == "llama3":
        low, high = number("low_freq_factor"), number("high_freq_factor")
        if low >= high:
            raise ExportError(f"rope scaling llama3: low_freq_factor {low} must lie below high_freq_factor {high}")
        frequencies = llama3_frequencies(
            frequencies, number("factor"), low, high, number("original_max_position_embeddings")
        )
    elif kind != "default":
        raise ExportError(f"rope scaling type {kind!r} is not supported (default, linear and llama3 are)")
    return Rope(frequencies.astype(np.float32))
