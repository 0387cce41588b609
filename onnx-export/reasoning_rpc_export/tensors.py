"""Weights as they lie in a checkpoint file: read in rows, never as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType, quants
from gguf.constants import GGML_QUANT_SIZES

from .errors import ExportError

# Rows are read and converted in pieces of about this many weights (16 MB as float32).
CHUNK_WEIGHTS = 4 << 20

_FLOATS = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}


def row_bytes(encoding: str, width: int, name: str) -> int:
    """Bytes of one row of `width` weights; an encoding that cannot be read is an error that names it."""
    if encoding in _FLOATS:
        return _FLOATS[encoding].itemsize * width
    try:
        kind = GGMLQuantizationType[encoding]
        block, size = GGML_QUANT_SIZES[kind]
        quants.dequantize(np.zeros((1, size), np.uint8), kind)
    except (KeyError, NotImplementedError):
        raise ExportError(f"tensor {name}: type {encoding} is not supported") from None
    if width % block:
        raise ExportError(f"tensor {name}: rows of {width} weights are not a multiple of the {encoding} block, {block}")
    return width // block * size


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint file.

    `shape` is [out, in] for matrices and [n] for vectors; a vector counts as n rows of one weight. The file is mapped
    anew for every read, so that no more of it stays in memory than the rows asked for.
    """

    name: str  # the name in the file, for messages
    path: Path
    offset: int
    shape: tuple[int, ...]
    encoding: str  # F32, F16, BF16 or the name of a GGML type
    # Row i of the tensor is row order[i] of the file; None where both orders are the same.
    order: np.ndarray | None = None

    @property
    def num_rows(self) -> int:
        return self.shape[0]

    @property
    def width(self) -> int:
        return self.shape[1] if len(self.shape) == 2 else 1

    @property
    def weights(self) -> int:
        return self.num_rows * self.width

    def raw_rows(self, start: int, stop: int) -> np.ndarray:
        """Rows as they are encoded: uint8 [stop - start, bytes of a row]."""
        size = row_bytes(self.encoding, self.width, self.name)
        first, last = (start, stop) if self.order is None else (0, self.num_rows)
        if last == first:
            return np.empty((0, size), np.uint8)
        mapped = np.memmap(self.path, np.uint8, "r", self.offset + first * size, (last - first, size))
        return mapped if self.order is None else mapped[self.order[start:stop]]

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows as exact float32 [stop - start, width]."""
        raw = self.raw_rows(start, stop)
        if self.encoding in _FLOATS:
            return raw.view(_FLOATS[self.encoding]).astype(np.float32)
        return quants.dequantize(np.ascontiguousarray(raw), GGMLQuantizationType[self.encoding])

    def vector(self) -> np.ndarray:
        """The whole of a vector as float32 [n]."""
        return self.rows(0, self.num_rows).reshape(-1)

    def chunks(self, multiple: int = 1) -> Iterator[tuple[int, int]]:
        """(start, stop) of consecutive runs of rows, each about CHUNK_WEIGHTS weights and, but for the last, a multiple
        of so many rows.
        """
        step = max(1, CHUNK_WEIGHTS // max(1, self.width) // multiple) * multiple
        for start in range(0, self.num_rows, step):
            yield start, min(start + step, self.num_rows)


def interleaved_to_half_split(num_heads: int, head_dim: int) -> np.ndarray:
    """Row order that undoes GGUF's permutation of Llama's q and k.

    A rotary pair (i, i + D/2) of the half-split order lies in GGUF as neighbours (2i, 2i + 1) of its head:
    `w.reshape(heads, D/2, 2, in).swapaxes(1, 2).reshape(out, in)` as an index, int64 [heads * D].
    """
    rows = np.arange(num_heads * head_dim).reshape(num_heads, head_dim // 2, 2)
    return rows.swapaxes(1, 2).reshape(-1)
