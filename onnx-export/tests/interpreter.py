"""Runs an exported graph in float64: each operator from its documentation, so that only the export is under test.

One row and an empty cache; weights are read from model.onnx.data by their location, offset and length.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from reference import attend, norm, rotate


def load_weights(folder: Path, model: onnx.ModelProto) -> dict[str, np.ndarray]:
    weights = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}
            with (folder / place["location"]).open("rb") as file:
                file.seek(int(place["offset"]))
                data = file.read(int(place["length"]))
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            weights[tensor.name] = np.frombuffer(data, dtype).reshape(tuple(tensor.dims))
        else:
            weights[tensor.name] = onnx.numpy_helper.to_array(tensor)
    return weights


def unpack(quants: np.ndarray, bits: int) -> np.ndarray:
    """uint8 [.., bytes] -> signed quants float64 [.., 32]; of two four-bit quants the first lies in the low half."""
    if bits == 4:
        quants = np.stack([quants & 15, quants >> 4], axis=-1).reshape(*quants.shape[:-1], -1)
    return quants.astype(np.float64) - (1 << (bits - 1))


def block_matrix(quants: np.ndarray, scales: np.ndarray, bits: int) -> np.ndarray:
    """float64 [out, in]"""
    values = unpack(quants, bits) * scales.astype(np.float64)[..., None]
    return values.reshape(len(quants), -1)


def packed_matrix(packed: np.ndarray, rows: int, width: int, kind: str) -> np.ndarray:
    """float64 [rows, width] of the bytes that QuantizedLinear reads, weight by weight, from the format's definition."""
    header = {"q4_0": 64, "q4_1": 128, "q8_0": 64}[kind]
    size = header + 2 * 16 * (32 if kind == "q8_0" else 16)
    panels, tiles = -(-rows // 16), -(-width // 64)
    assert packed.shape == (panels * tiles * size,)
    tile = packed.reshape(panels, tiles, size)
    halves = np.ascontiguousarray(tile[:, :, :header]).view("<f2").astype(np.float64).reshape(panels, tiles, -1, 2, 16)
    out = np.zeros((panels * 16, tiles * 64))
    for block in range(2):
        for row in range(16):
            for weight in range(32):
                half, index = (0, weight) if kind == "q8_0" else divmod(weight, 16)
                words = 8 if kind == "q8_0" else 4
                at = header + ((block * words + index // 4) * 16 + row) * 4 + index % 4
                byte = tile[:, :, at]
                if kind == "q8_0":
                    quant = byte.view(np.int8).astype(np.float64)
                else:
                    quant = ((byte >> 4 * half) & 15).astype(np.float64) - (8 if kind == "q4_0" else 0)
                value = halves[:, :, 0, block, row] * quant
                if kind == "q4_1":
                    value = value + halves[:, :, 1, block, row]
                out[row::16, 32 * block + weight :: 64] = value
    assert not out[rows:].any() and not out[:, width:].any(), "padding stands for zeros"
    return out[:rows, :width]


class Interpreter:
    def __init__(self, folder: Path):
        self.model = onnx.load(folder / "model.onnx", load_external_data=False)
        self.weights = load_weights(folder, self.model)

    def run(self, ids: list[int], rows: list[int]) -> np.ndarray:
        """Logits [len(rows), vocab] of a fresh row."""
        length = len(ids)
        self.values: dict[str, np.ndarray | None] = {
            name: weight.astype(np.float64) if weight.dtype == np.float32 else weight
            for name, weight in self.weights.items()
        }
        batched = any(value.name == "seqlens_k" for value in self.model.graph.input)
        tokens, positions = np.array(ids), np.arange(length)
        self.values |= {
            "": None,
            "input_ids": tokens[None] if batched else tokens,
            "positions": positions[None] if batched else positions,
            "logits_rows": np.array(rows, np.int64),
            "row_offsets": np.array([0, length]),
            "slots": np.array([0]),
            "seqlens_k": np.array([length - 1]),
            "total_sequence_length": np.array(length),
        }
        for value in self.model.graph.input:
            self.values.setdefault(value.name, None)  # past keys and values: empty
        for node in self.model.graph.node:
            attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
            results = getattr(self, node.op_type)(*(self.values[name] for name in node.input), **attributes)
            if not isinstance(results, tuple):
                results = (results,)
            self.values |= dict(zip(node.output, results, strict=False))
        return self.values["logits"]

    # Standard operators

    def Gather(self, data, indices, axis):
        assert axis == 0
        return data[indices]

    def Reshape(self, x, shape):
        return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)])

    def ReduceSum(self, x, axes, keepdims):
        return x.sum(axis=tuple(axes), keepdims=bool(keepdims))

    def MatMul(self, a, b):
        return a @ b

    def Gemm(self, a, b, c=0.0, transB=0):
        return a @ (b.T if transB else b) + c

    def Add(self, a, b):
        return a + b

    def Mul(self, a, b):
        return a * b

    def RMSNormalization(self, x, weight, axis, epsilon):
        assert axis == -1
        return norm(x, weight, epsilon)

    # com.microsoft

    def SkipSimplifiedLayerNormalization(self, x, skip, weight, epsilon):
        return norm(x + skip, weight, epsilon), None, None, x + skip

    def QuickGelu(self, x, alpha):
        return x / (1 + np.exp(-alpha * x))

    def GatherBlockQuantized(self, data, indices, scales, bits, block_size, gather_axis, quantize_axis):
        assert (block_size, gather_axis, quantize_axis) == (32, 0, 1)
        blocks = data.reshape(*scales.shape, -1)
        return block_matrix(blocks, scales, bits)[indices]

    def MatMulNBits(self, x, quants, scales, zero_points=None, g_idx=None, bias=None, **attributes):
        assert zero_points is None and g_idx is None
        assert attributes["block_size"] == 32 and attributes["accuracy_level"] == 4
        matrix = block_matrix(quants, scales, attributes["bits"])
        assert matrix.shape == (attributes["N"], attributes["K"])
        return x @ matrix.T + (0.0 if bias is None else bias)

    def RotaryEmbedding(self, x, positions, cos, sin, interleaved):
        assert interleaved == 0
        half = cos.shape[1]
        a, b = np.split(x.reshape(*x.shape[:2], -1, 2 * half), 2, axis=-1)
        cos, sin = cos[positions][:, :, None], sin[positions][:, :, None]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)

    def GroupQueryAttention(self, q, k, v, past_k, past_v, seqlens_k, total, num_heads, kv_num_heads, scale, do_rotary):
        assert past_k is None and past_v is None and do_rotary == 0
        assert int(seqlens_k[0]) + 1 == int(total) == q.shape[1]
        heads = (q[0].reshape(total, num_heads, -1), *(x[0].reshape(total, kv_num_heads, -1) for x in (k, v)))
        keys, values = (x.swapaxes(0, 1)[None] for x in heads[1:])
        return attend(*heads, scale)[None], keys, values

    # reasoning_rpc

    def CachedAttention(self, q, k, v, positions, row_offsets, slots, inv_freq, **attributes):
        heads, kv_heads, dim = (attributes[name] for name in ("num_heads", "num_kv_heads", "head_dim"))
        q, k, v = (x.reshape(len(positions), -1, dim) for x in (q, k, v))
        assert (q.shape[1], k.shape[1], v.shape[1]) == (heads, kv_heads, kv_heads)
        assert attributes["rope_attention_factor"] == 1.0
        rotated = (rotate(x, inv_freq, positions) for x in (q, k))
        return attend(*rotated, v, attributes["scale"])

    def QuantizedGather(self, ids, table, format, rows, width):
        return packed_matrix(table, rows, width, format.decode())[ids]

    def QuantizedLinear(self, x, weight, addend, *matrices, width, rows, formats, epsilon, gated):
        assert x.shape[1] == width
        if weight is not None:
            x = norm(x, weight, epsilon)
        outputs = []
        for index, (count, kind) in enumerate(zip(rows, formats.decode().split(","), strict=True)):
            packed, bias = (*matrices[2 * index : 2 * index + 2], None)[:2]
            outputs.append(x @ packed_matrix(packed, count, width, kind).T + (0.0 if bias is None else bias))
        if gated:
            gate, up = outputs
            return gate / (1 + np.exp(-gate)) * up
        if addend is not None:
            (output,) = outputs
            outputs = [output + addend]
        return tuple(outputs)
