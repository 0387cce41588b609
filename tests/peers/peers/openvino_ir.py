"""Writes a GGUF of Q4_0 weights as an OpenVINO model, in the form that its exporters give a decoder.

Weights are 4-bit constants in blocks of 32 with fp16 scales, decompressed in the graph, which the CPU plugin keeps
packed. Keys and values are states (ReadValue, Gather by beam_idx, Concat, Assign) in front of
ScaledDotProductAttention: the plugin fuses these, and openvino_genai replaces them by paged attention.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import openvino as ov
from openvino import opset15 as op
from openvino.op.util import VariableInfo, Variable

BLOCK = 32
INPUTS = ("input_ids", "attention_mask", "position_ids", "beam_idx")


class Builder:
    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        architecture = reader.fields["general.architecture"].contents()

        def field(name: str) -> int | float:
            return reader.fields[f"{architecture}.{name}"].contents()

        self.layers = field("block_count")
        self.hidden = field("embedding_length")
        self.heads, self.kv_heads = field("attention.head_count"), field("attention.head_count_kv")
        self.head_dim = field("attention.key_length")
        self.epsilon = field("attention.layer_norm_rms_epsilon")
        self.theta = field("rope.freq_base")
        self.sinks: list[ov.Node] = []
        self.kept_alive: list[np.ndarray] = []  # 4-bit constants are views of these until the model is saved

    def weight(self, name: str) -> ov.Node:
        """A matrix [out, in], float32 after decompression."""
        tensor = self.tensors[name + ".weight"]
        if tensor.tensor_type != gguf.GGMLQuantizationType.Q4_0:
            raise ValueError(f"{name}: expected Q4_0, found {tensor.tensor_type.name}")
        width, rows = (int(size) for size in tensor.shape)
        raw = tensor.data.reshape(rows, width // BLOCK, 2 + BLOCK // 2)
        scales = np.ascontiguousarray(raw[..., :2]).view(np.float16)
        # Index j and j + 16 share a byte in the file; here neighbours do. Minus 8: two's complement.
        quants = np.concatenate([raw[..., 2:] & 15, raw[..., 2:] >> 4], axis=-1) ^ 8
        packed = quants[..., 0::2] | (quants[..., 1::2] << 4)
        self.kept_alive.append(packed)
        blocks = ov.Tensor(packed.reshape(-1), ov.Shape([rows, width // BLOCK, BLOCK]), ov.Type.i4)
        constant = op.constant(blocks)
        constant.set_friendly_name(name)
        scaled = op.multiply(op.convert(constant, "f16"), op.constant(scales))
        return op.convert(op.reshape(scaled, ints([rows, width]), False), "f32")

    def vector(self, name: str) -> ov.Node:
        return op.constant(np.array(self.tensors[name].data, np.float32).reshape(1, 1, -1))

    def norm(self, x: ov.Node, name: str) -> ov.Node:
        mean = op.reduce_mean(op.power(x, floats(2)), ints([-1]), True)
        inverse = op.divide(floats(1), op.sqrt(op.add(mean, floats(self.epsilon))))
        return op.multiply(op.multiply(x, inverse), self.vector(name + ".weight"))

    def linear(self, x: ov.Node, name: str) -> ov.Node:
        product = op.matmul(x, self.weight(name), False, True)
        bias = name + ".bias"
        return op.add(product, self.vector(bias)) if bias in self.tensors else product

    def heads_first(self, x: ov.Node, heads: int) -> ov.Node:
        """[B, T, heads * head_dim] -> [B, heads, T, head_dim]."""
        return op.transpose(op.reshape(x, ints([0, 0, heads, self.head_dim]), True), ints([0, 2, 1, 3]))

    def rotate(self, x: ov.Node, cos: ov.Node, sin: ov.Node) -> ov.Node:
        half = self.head_dim // 2
        low = op.slice(x, ints([0]), ints([half]), ints([1]), ints([3]))
        high = op.slice(x, ints([half]), ints([np.iinfo(np.int64).max]), ints([1]), ints([3]))
        turned = op.concat([op.multiply(high, op.constant(np.full((1, 1, 1, 1), -1, np.float32))), low], -1)
        return op.add(op.multiply(x, cos), op.multiply(turned, sin))

    def rotary(self, positions: ov.Node, batch: ov.Node) -> tuple[ov.Node, ov.Node]:
        """Cosines and sines, [B, 1, T, head_dim]."""
        frequencies = self.theta ** -(np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim)
        column = op.constant(frequencies.astype(np.float32).reshape(1, -1, 1))
        column = op.broadcast(column, op.concat([batch, ints([1]), ints([1])], 0), broadcast_spec="BIDIRECTIONAL")
        row = op.convert(op.unsqueeze(positions, ints(1)), "f32")
        angles = op.transpose(op.matmul(column, row, False, False), ints([0, 2, 1]))
        angles = op.concat([angles, angles], -1)
        return op.unsqueeze(op.cos(angles), ints(1)), op.unsqueeze(op.sin(angles), ints(1))

    def cached(self, x: ov.Node, name: str, batch: ov.Node, beam_idx: ov.Node) -> ov.Node:
        """What was before and `x`, [B, kv_heads, S, head_dim]; its state is called `name`."""
        info = VariableInfo()
        info.data_shape = ov.PartialShape([-1, self.kv_heads, -1, self.head_dim])
        info.data_type = ov.Type.f32
        info.variable_id = name
        variable = Variable(info)
        empty = op.concat([batch, ints([self.kv_heads]), ints([0]), ints([self.head_dim])], 0)
        past = op.read_value(op.broadcast(floats(0), empty), variable)
        present = op.concat([op.gather(past, beam_idx, ints(0)), x], 2)
        self.sinks.append(op.assign(present, variable))
        return present

    def repeated(self, x: ov.Node, batch: ov.Node) -> ov.Node:
        """Each KV head for all its query heads: [B, heads, S, head_dim]."""
        shape = op.concat([batch, ints([self.kv_heads, self.heads // self.kv_heads, 1, self.head_dim])], 0)
        spread = op.broadcast(op.unsqueeze(x, ints(2)), shape, broadcast_spec="BIDIRECTIONAL")
        return op.reshape(spread, ints([0, self.heads, -1, self.head_dim]), True)

    def mask(self, attention_mask: ov.Node, input_ids: ov.Node, batch: ov.Node) -> ov.Node:
        """0 where a query sees an entry, else the most negative number; [B, 1, T, S]."""
        new = op.gather(op.shape_of(input_ids), ints(1), ints(0))
        total = op.gather(op.shape_of(attention_mask), ints(1), ints(0))
        entry = op.unsqueeze(op.range(ints(0), total, ints(1), "i64"), ints(0))
        query = op.unsqueeze(op.range(op.subtract(total, new), total, ints(1), "i64"), ints(1))
        seen = op.unsqueeze(op.less_equal(entry, query), ints([0, 1]))
        seen = op.logical_and(seen, op.unsqueeze(op.not_equal(attention_mask, ints(0)), ints([1, 2])))
        return op.select(seen, floats(0), floats(-65504))

    def build(self) -> ov.Model:
        input_ids = op.parameter([-1, -1], ov.Type.i64)
        attention_mask = op.parameter([-1, -1], ov.Type.i64)
        positions = op.parameter([-1, -1], ov.Type.i64)
        beam_idx = op.parameter([-1], ov.Type.i32)
        inputs = [input_ids, attention_mask, positions, beam_idx]
        batch = op.gather(op.shape_of(input_ids), ints([0]), ints([0]))
        table = self.weight("token_embd")
        hidden = op.gather(table, op.convert(input_ids, "i32"), op.constant(np.int32(0)))
        cos, sin = self.rotary(positions, batch)
        mask = self.mask(attention_mask, input_ids, batch)
        flat = ints([0, 0, self.heads * self.head_dim])
        for layer in range(self.layers):
            prefix = f"blk.{layer}."
            normed = self.norm(hidden, prefix + "attn_norm")
            q, k, v = (self.linear(normed, f"{prefix}attn_{x}") for x in "qkv")
            q = self.rotate(self.heads_first(q, self.heads), cos, sin)
            k = self.rotate(self.heads_first(k, self.kv_heads), cos, sin)
            v = self.heads_first(v, self.kv_heads)
            k = self.cached(k, f"past_key_values.{layer}.keypresent.{layer}.key", batch, beam_idx)
            v = self.cached(v, f"past_key_values.{layer}.valuepresent.{layer}.value", batch, beam_idx)
            k, v = self.repeated(k, batch), self.repeated(v, batch)
            attended = op.scaled_dot_product_attention(q, k, v, mask, None, False)
            attended = op.reshape(op.transpose(attended, ints([0, 2, 1, 3])), flat, True)
            hidden = op.add(hidden, self.linear(attended, prefix + "attn_output"))
            normed = self.norm(hidden, prefix + "ffn_norm")
            gate = op.swish(self.linear(normed, prefix + "ffn_gate"))
            inner = op.multiply(gate, self.linear(normed, prefix + "ffn_up"))
            hidden = op.add(hidden, self.linear(inner, prefix + "ffn_down"))
        head = self.weight("output") if "output.weight" in self.tensors else table
        logits = op.matmul(self.norm(hidden, "output_norm"), head, False, True)
        result = op.result(logits)
        result.output(0).get_tensor().set_names({"logits"})
        model = ov.Model([result], self.sinks, inputs, "decoder")
        for port, name in zip(model.inputs, INPUTS, strict=True):
            port.get_tensor().set_names({name})
            port.get_node().set_friendly_name(name)
        return model


def ints(values: int | list[int]) -> ov.Node:
    return op.constant(np.array(values, np.int64))


def floats(value: float) -> ov.Node:
    return op.constant(np.float32(value))


def write(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    builder = Builder(source)  # its constants are read while the model is saved
    ov.save_model(builder.build(), folder / "openvino_model.xml", compress_to_fp16=False)
    # openvino_genai makes its tokenizer from the GGUF.
    link = folder / "source.gguf"
    link.unlink(missing_ok=True)
    link.symlink_to(source.resolve())
