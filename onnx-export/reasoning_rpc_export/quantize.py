"""Weights in blocks of 32 along `in`, as com.microsoft MatMulNBits and GatherBlockQuantized read them.

An unsigned quant u of b bits stands for `scale * (u - 2**(b-1))`; scales are float32 and may be negative. Four-bit
quants lie two to a byte, the even index in the low half. What a GGUF holds in blocks of the same width is re-packed
without loss: Q4_0 and Q4_1 to 4 bits, Q4_0, Q5_0 and Q8_0 to 8 bits. Everything else is rounded.

A Q4_1 block is `d * q + m`. MatMulNBits with zero points would leave its fast kernel for it, so the block is written as
the symmetric `d * (q - 8)` and a minimum `m + 8 d`, which the graph multiplies with the sum of the block's inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import ExportError
from .tensors import StoredTensor

BLOCK = 32
# What a block's weight of largest magnitude is scaled to, sign turned; the best of these is chosen per block. Beyond the
# range of -8 to 7 it is clipped a little.
CANDIDATES = tuple(sign * step / 100 for sign in (1, -1) for step in range(640, 970, 30))
# Blocks searched at once: 2 MB of float32, so that the candidates run from the processor's cache.
SEARCH_BLOCKS = 16384


@dataclass(frozen=True)
class Blocks:
    """Rows of a matrix: quants uint8 [rows, in/32, 32 * bits / 8], scales and minimums float32 [rows, in/32]."""

    quants: np.ndarray
    scales: np.ndarray
    minimums: np.ndarray | None = None


def has_minimums(tensor: StoredTensor, bits: int) -> bool:
    return tensor.encoding == "Q4_1" and bits == 4


def is_exact(tensor: StoredTensor, bits: int) -> bool:
    """Whether the tensor's own blocks are kept as they are."""
    return (tensor.encoding, bits) in _REPACK


def encode(tensor: StoredTensor, bits: int, start: int, stop: int) -> Blocks:
    """Rows start .. stop - 1 of a matrix whose width is a multiple of 32."""
    shape = (stop - start, tensor.width // BLOCK, -1)
    repack = _REPACK.get((tensor.encoding, bits))
    if repack is not None:
        blocks = repack(tensor.raw_rows(start, stop).reshape(shape))
        _check_finite(tensor, blocks.scales)
        if blocks.minimums is not None:
            _check_finite(tensor, blocks.minimums)
        return blocks
    rows = tensor.rows(start, stop).reshape(shape)
    _check_finite(tensor, rows)
    return round_to_8_bits(rows) if bits == 8 else round_to_4_bits(rows)


def _check_finite(tensor: StoredTensor, values: np.ndarray) -> None:
    if values.size and not (np.isfinite(values.max()) and np.isfinite(values.min())):
        raise ExportError(f"tensor {tensor.name}: holds values that are not finite")


# GGUF blocks, raw uint8 [rows, blocks, bytes]. Layouts: float16 d (and m), for five bits a mask of 32 fifth bits, then
# quants; of four-bit quants, byte j holds index j in its low half and index j + 16 in its high half.


def _float16(raw: np.ndarray, offset: int) -> np.ndarray:
    return np.ascontiguousarray(raw[..., offset : offset + 2]).view("<f2")[..., 0].astype(np.float32)


def _nibbles(halves: np.ndarray) -> np.ndarray:
    """uint8 [.., 16] -> [.., 32] in the order of their indices."""
    return np.concatenate([halves & 15, halves >> 4], axis=-1)


def repack_q4_0(raw: np.ndarray) -> Blocks:
    return Blocks(pack_nibbles(_nibbles(raw[..., 2:])), _float16(raw, 0))


def repack_q4_1(raw: np.ndarray) -> Blocks:
    scales = _float16(raw, 0)
    return Blocks(pack_nibbles(_nibbles(raw[..., 4:])), scales, _float16(raw, 2) + 8 * scales)


def widen_q4_0(raw: np.ndarray) -> Blocks:
    return Blocks(_nibbles(raw[..., 2:]) + np.uint8(128 - 8), _float16(raw, 0))


def widen_q5_0(raw: np.ndarray) -> Blocks:
    fifth = np.unpackbits(raw[..., 2:6], axis=-1, bitorder="little")
    return Blocks((_nibbles(raw[..., 6:]) | fifth << 4) + np.uint8(128 - 16), _float16(raw, 0))


def repack_q8_0(raw: np.ndarray) -> Blocks:
    return Blocks(raw[..., 2:] ^ np.uint8(0x80), _float16(raw, 0))  # two's complement + 128


_REPACK = {
    ("Q4_0", 4): repack_q4_0,
    ("Q4_1", 4): repack_q4_1,
    ("Q4_0", 8): widen_q4_0,
    ("Q5_0", 8): widen_q5_0,
    ("Q8_0", 8): repack_q8_0,
}


# Rounding, float32 [rows, blocks, 32]


def pack_nibbles(quants: np.ndarray) -> np.ndarray:
    """uint8 below 16 [.., 32] -> [.., 16]."""
    return quants[..., 0::2] | (quants[..., 1::2] << 4)


def round_to_8_bits(rows: np.ndarray) -> Blocks:
    """To nearest, the largest magnitude of a block at 127."""
    scales = np.maximum(rows.max(axis=-1), -rows.min(axis=-1)) / np.float32(127)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    quants = rows * inverse[..., None]
    np.add(np.rint(quants, out=quants), 128, out=quants)
    return Blocks(quants.astype(np.uint8), scales)


def round_to_4_bits(rows: np.ndarray) -> Blocks:
    """To nearest, with the scale per block, out of CANDIDATES, that leaves the smallest weighted squared error.

    An error counts by the square root of its weight's magnitude: large weights matter more to the product than the
    plain squared error says (on SmolLM2 a sixth of the loss). For given quants q and importances s the best scale is
    `sxq / sqq` and its error `sxx - sxq^2 / sqq`: the candidate with the largest sxq^2 / sqq wins. The weight of
    largest magnitude goes to about -8, so a scale is negative where that weight is positive; or to about 8, clipped.
    """
    shape = rows.shape[:-1]
    blocks = rows.reshape(-1, BLOCK)
    quants = np.empty((len(blocks), BLOCK // 2), np.uint8)
    scales = np.empty(len(blocks), np.float32)
    for start in range(0, len(blocks), SEARCH_BLOCKS):
        part = slice(start, start + SEARCH_BLOCKS)
        quants[part], scales[part] = _search_4_bits(blocks[part])
    return Blocks(quants.reshape(*shape, BLOCK // 2), scales.reshape(shape))


def _search_4_bits(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x [n, 32] -> quants [n, 16], scales [n]."""
    magnitude = np.abs(x)
    largest = np.take_along_axis(x, magnitude.argmax(axis=1)[:, None], axis=1)
    unit = x * np.divide(-1, largest, out=np.zeros_like(largest), where=largest != 0)
    importance = np.sqrt(magnitude)
    weighted = importance * x
    best_gain = np.full(len(x), -1, np.float32)
    best_scale, best_target = np.zeros(len(x), np.float32), np.zeros(len(x), np.float32)
    q, square = np.empty_like(x), np.empty_like(x)
    for target in CANDIDATES:
        np.multiply(unit, np.float32(target), out=q)
        np.clip(np.rint(q, out=q), -8, 7, out=q)
        xq = np.einsum("ij,ij->i", weighted, q)
        qq = np.einsum("ij,ij->i", importance, np.multiply(q, q, out=square))
        scale = np.divide(xq, qq, out=np.zeros_like(xq), where=qq != 0)
        gain = xq * scale
        better = gain > best_gain
        best_gain[better], best_scale[better], best_target[better] = gain[better], scale[better], target
    np.multiply(unit, best_target[:, None], out=q)
    np.clip(np.rint(q, out=q), -8, 7, out=q)
    return pack_nibbles((q + 8).astype(np.uint8)), best_scale
