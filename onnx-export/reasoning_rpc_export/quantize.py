"""Weights in blocks of 32 along `in`: GGUF's Q4_0, Q4_1 and Q8_0, and how they lie in the two flavours of a graph.

What a GGUF holds in blocks of the same width is kept without loss: Q4_0 and Q4_1 in 4 bits, Q4_0, Q5_0 and Q8_0 in 8.
Everything else is rounded. Scales and minimums are float16 numbers.
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
    """Rows of a matrix, [rows, in/32]. An unsigned quant u of b bits stands for `scale * (u - 2**(b-1))`, with minimums
    for `scale * u + minimum`; scales may be negative.
    """

    quants: np.ndarray  # uint8 [rows, in/32, 32]
    scales: np.ndarray  # float16
    minimums: np.ndarray | None = None  # float16


def has_minimums(tensor: StoredTensor, bits: int) -> bool:
    return tensor.encoding == "Q4_1" and bits == 4


def format_of(tensor: StoredTensor, bits: int) -> str:
    """The block's name in a graph."""
    return "q8_0" if bits == 8 else "q4_1" if has_minimums(tensor, bits) else "q4_0"


def is_exact(tensor: StoredTensor, bits: int) -> bool:
    """Whether the tensor's own blocks are kept as they are."""
    return (tensor.encoding, bits) in _REPACK


def encode(tensor: StoredTensor, bits: int, start: int, stop: int) -> Blocks:
    """Rows start .. stop - 1 of a matrix whose width is a multiple of 32."""
    shape = (stop - start, tensor.width // BLOCK, -1)
    repack = _REPACK.get((tensor.encoding, bits))
    if repack is not None:
        blocks = repack(tensor.raw_rows(start, stop).reshape(shape))
        for values in (blocks.scales, blocks.minimums):
            if values is not None:
                _check_finite(tensor, values)
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
    return np.ascontiguousarray(raw[..., offset : offset + 2]).view("<f2")[..., 0]


def _nibbles(halves: np.ndarray) -> np.ndarray:
    """uint8 [.., 16] -> [.., 32] in the order of their indices."""
    return np.concatenate([halves & 15, halves >> 4], axis=-1)


def repack_q4_0(raw: np.ndarray) -> Blocks:
    return Blocks(_nibbles(raw[..., 2:]), _float16(raw, 0))


def repack_q4_1(raw: np.ndarray) -> Blocks:
    return Blocks(_nibbles(raw[..., 4:]), _float16(raw, 0), _float16(raw, 2))


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


def round_to_8_bits(rows: np.ndarray) -> Blocks:
    """To nearest, the largest magnitude of a block at about 127: as near as float16 has a scale."""
    scales = _to_float16(np.maximum(rows.max(axis=-1), -rows.min(axis=-1)) / np.float32(127))
    divisors = scales.astype(np.float32)
    inverse = np.divide(1, divisors, out=np.zeros_like(divisors), where=divisors != 0)
    quants = rows * inverse[..., None]
    np.clip(np.rint(quants, out=quants), -127, 127, out=quants)
    return Blocks(np.add(quants, 128, out=quants).astype(np.uint8), scales)


def round_to_4_bits(rows: np.ndarray) -> Blocks:
    """To nearest, with the scale per block, out of CANDIDATES, that leaves the smallest weighted squared error.

    An error counts by the square root of its weight's magnitude: large weights matter more to the product than the
    plain squared error says (on SmolLM2 a sixth of the loss). For given quants q and importances s the best scale is
    `sxq / sqq` and its error `sxx - sxq^2 / sqq`: the candidate with the largest sxq^2 / sqq wins. The weight of
    largest magnitude goes to about -8, so a scale is negative where that weight is positive; or to about 8, clipped.
    """
    shape = rows.shape[:-1]
    blocks = rows.reshape(-1, BLOCK)
    quants = np.empty((len(blocks), BLOCK), np.uint8)
    scales = np.empty(len(blocks), np.float32)
    for start in range(0, len(blocks), SEARCH_BLOCKS):
        part = slice(start, start + SEARCH_BLOCKS)
        quants[part], scales[part] = _search_4_bits(blocks[part])
    return Blocks(quants.reshape(*shape, BLOCK), _to_float16(scales).reshape(shape))


def _search_4_bits(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x [n, 32] -> quants [n, 32], scales [n]."""
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
    return (q + 8).astype(np.uint8), best_scale


def _to_float16(scales: np.ndarray) -> np.ndarray:
    """Beyond its largest number that number."""
    return np.clip(scales, -65504, 65504).astype(np.float16)


# MatMulNBits and GatherBlockQuantized of com.microsoft: no minimums. With zero points MatMulNBits would leave its fast
# kernel for a Q4_1 block, so that is written as the symmetric `d * (q - 8)` and a minimum `m + 8 d`, which the graph
# multiplies with the sum of the block's inputs.


def stock_quants(blocks: Blocks, bits: int) -> np.ndarray:
    """uint8 [rows, in/32, 32 * bits / 8]; four-bit quants lie two to a byte, the even index in the low half."""
    quants = blocks.quants
    return quants if bits == 8 else quants[..., 0::2] | (quants[..., 1::2] << 4)


def stock_minimums(blocks: Blocks) -> np.ndarray:
    """float32 [rows, in/32]"""
    return blocks.minimums.astype(np.float32) + 8 * blocks.scales.astype(np.float32)


# The operators of reasoning_rpc: panels of 16 output rows, of tiles of two blocks, both padded with zeros. A tile has
# the scales, float16 [2][16]; minimums likewise, where there are any; then of 4 bits [2][4][16][4] bytes (block, j, row,
# i: weight 4 j + i of the block in the low half, 16 + 4 j + i in the high half), of 8 bits [2][8][16][4] (weight
# 4 j + i, two's complement).

PANEL_ROWS = 16


def packed_shape(rows: int, width: int, block_format: str) -> tuple[int]:
    """Of the bytes of a matrix [rows, width]."""
    tile = 2 * PANEL_ROWS * {"q4_0": 2 + 16, "q4_1": 4 + 16, "q8_0": 2 + 32}[block_format]
    return (-(-rows // PANEL_ROWS) * -(-width // (2 * BLOCK)) * tile,)


def pack(blocks: Blocks, block_format: str) -> np.ndarray:
    """Some panels, uint8 [panels, tiles, bytes]; only the last of a matrix may have fewer than 16 rows."""
    rows, width = blocks.scales.shape
    panels, tiles = -(-rows // PANEL_ROWS), -(-width // 2)

    def tiled(values: np.ndarray) -> np.ndarray:
        """[rows, in/32, ..] -> [panels, tiles, 2, 16, ..]"""
        if (rows, width) != (panels * PANEL_ROWS, tiles * 2):
            padded = np.zeros((panels * PANEL_ROWS, tiles * 2, *values.shape[2:]), values.dtype)
            padded[:rows, :width] = values
            values = padded
        values = values.reshape(panels, PANEL_ROWS, tiles, 2, *values.shape[2:])
        return values.swapaxes(1, 2).swapaxes(2, 3)

    def as_bytes(values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(values).view(np.uint8).reshape(panels, tiles, -1)

    if block_format == "q8_0":
        words = tiled(blocks.quants ^ np.uint8(0x80))
    else:
        words = tiled(blocks.quants[..., :16] | (blocks.quants[..., 16:] << 4))
    words = words.reshape(*words.shape[:4], -1, 4).swapaxes(3, 4)  # [panels, tiles, 2, j, 16, 4]
    parts = [as_bytes(tiled(blocks.scales))]
    if blocks.minimums is not None:
        parts.append(as_bytes(tiled(blocks.minimums)))
    return np.concatenate([*parts, as_bytes(words)], axis=-1)
