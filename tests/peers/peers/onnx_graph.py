"""Writes a GGUF of Q4_0 weights as an ONNX decoder of stock operators, as onnxruntime-genai's model builder does it.

GroupQueryAttention with packed q, k and v and its own rotation, MatMulNBits in 4-bit blocks of 32 with 8-bit activations,
logits of the last token alone. The folder is one that onnxruntime-genai opens; plain ONNX Runtime runs its graph.
"""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import onnx
from onnx import TensorProto, helper

BLOCK = 32
MICROSOFT = "com.microsoft"
ALIGNMENT = 4096
# Of an int8 cache: of the size that keys of these random weights have, so that nothing is clipped to a few values.
CACHE_SCALE = 8 / 127


class Builder:
    def __init__(self, path: Path, data: Path, cache: str) -> None:
        reader = gguf.GGUFReader(path)
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        architecture = reader.fields["general.architecture"].contents()

        def field(name: str) -> int | float:
            return reader.fields[f"{architecture}.{name}"].contents()

        self.layers = field("block_count")
        self.hidden = field("embedding_length")
        self.intermediate = field("feed_forward_length")
        self.heads, self.kv_heads = field("attention.head_count"), field("attention.head_count_kv")
        self.head_dim = field("attention.key_length")
        self.context = field("context_length")
        self.epsilon = field("attention.layer_norm_rms_epsilon")
        self.theta = field("rope.freq_base")
        self.vocab = int(self.tensors["token_embd.weight"].shape[1])
        self.cache = cache
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.data = data
        self.file = data.open("wb")

    def initializer(self, name: str, values: np.ndarray, shape: list[int] | None = None) -> str:
        self.file.write(bytes(-self.file.tell() % ALIGNMENT))
        offset = self.file.tell()
        self.file.write(np.ascontiguousarray(values).tobytes())
        return self.external(name, values.dtype, shape or list(values.shape), offset, values.nbytes)

    def external(self, name: str, dtype: np.dtype, shape: list[int], offset: int, size: int) -> str:
        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(dtype), dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self.data.name), ("offset", offset), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        self.initializers.append(tensor)
        return name

    def constant(self, name: str, value: np.ndarray) -> str:
        if name not in [tensor.name for tensor in self.initializers]:
            self.initializers.append(onnx.numpy_helper.from_array(value, name))
        return name

    def node(self, kind: str, inputs: list[str], name: str, domain: str = "", outputs: list[str] = (), **more) -> str:
        outputs = list(outputs) or [name]
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=name, domain=domain, **more))
        return outputs[0]

    def blocks(self, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Quants uint8 [out, in / 32, 16] and scales float32 [out, in / 32] of matrices below each other."""
        quants, scales = [], []
        for name in names:
            tensor = self.tensors[name + ".weight"]
            if tensor.tensor_type != gguf.GGMLQuantizationType.Q4_0:
                raise ValueError(f"{name}: expected Q4_0, found {tensor.tensor_type.name}")
            width, rows = (int(size) for size in tensor.shape)
            raw = tensor.data.reshape(rows, width // BLOCK, 2 + BLOCK // 2)
            scales.append(np.ascontiguousarray(raw[..., :2]).view(np.float16)[..., 0].astype(np.float32))
            halves = np.concatenate([raw[..., 2:] & 15, raw[..., 2:] >> 4], axis=-1)
            quants.append(halves[..., 0::2] | (halves[..., 1::2] << 4))
        return np.concatenate(quants), np.concatenate(scales)

    def product(self, x: str, quants: str, scales: str, rows: int, width: int, name: str) -> str:
        attributes = {"N": rows, "K": width, "bits": 4, "block_size": BLOCK, "accuracy_level": 4}
        return self.node("MatMulNBits", [x, quants, scales], name, MICROSOFT, **attributes)

    def linear(self, x: str, sources: list[str], name: str) -> str:
        quants, scales = self.blocks(sources)
        rows, width = quants.shape[0], quants.shape[1] * BLOCK
        stored = self.initializer(name + ".quants", quants), self.initializer(name + ".scales", scales)
        if sources[0] + ".bias" not in self.tensors:
            return self.product(x, *stored, rows, width, name)
        product = self.product(x, *stored, rows, width, name + ".product")
        bias = np.concatenate([self.tensors[source + ".bias"].data for source in sources])
        return self.node("Add", [product, self.initializer(name + ".bias", bias.astype(np.float32))], name)

    def vector(self, name: str) -> str:
        return self.initializer(name, np.asarray(self.tensors[name].data, np.float32))

    def add_and_norm(self, hidden: str, addend: str, norm: str, last: bool = False) -> tuple[str, str]:
        outputs = [norm] if last else [norm, "", "", norm + ".sum"]
        inputs = [hidden, addend, self.vector(norm + ".weight")]
        epsilon = self.epsilon
        self.node("SkipSimplifiedLayerNormalization", inputs, norm, MICROSOFT, outputs, epsilon=epsilon)
        return norm + ".sum", norm

    def build(self) -> onnx.ModelProto:
        integers = TensorProto.INT64
        inputs = [
            helper.make_tensor_value_info("input_ids", integers, ["B", "T"]),
            helper.make_tensor_value_info("attention_mask", integers, ["B", "S"]),
        ]
        outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", 1, self.vocab])]
        kind = TensorProto.INT8 if self.cache == "int8" else TensorProto.FLOAT
        one = self.constant("one", np.array([1], np.int64))
        lengths = self.node("ReduceSum", ["attention_mask", one], "lengths", keepdims=0)
        before = self.node("Sub", [lengths, one], "lengths_before")
        seqlens = self.node("Cast", [before], "seqlens_k", to=TensorProto.INT32)
        shape = self.node("Shape", ["attention_mask"], "mask_shape")
        total = self.node("Gather", [shape, self.constant("index_1", np.array(1, np.int64))], "total", axis=0)
        total = self.node("Cast", [total], "total_sequence_length", to=TensorProto.INT32)
        frequencies = self.theta ** -(np.arange(0, self.head_dim, 2) / self.head_dim)
        angles = np.outer(np.arange(self.context), frequencies)
        cos = self.initializer("cos_cache", np.cos(angles).astype(np.float32))
        sin = self.initializer("sin_cache", np.sin(angles).astype(np.float32))

        quants, scales = self.blocks(["token_embd"])
        table = self.initializer("token_embd.quants", quants)
        table_scales = self.initializer("token_embd.scales", scales)
        # The same bytes with the shape that the lookup wants.
        bytes_of = {entry.key: entry.value for entry in self.initializers[-2].external_data}
        rows = self.external(
            "token_embd.rows", quants.dtype, [self.vocab, self.hidden // 2], int(bytes_of["offset"]), quants.nbytes
        )
        lookup = {"bits": 4, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
        hidden = self.node("GatherBlockQuantized", [rows, "input_ids", table_scales], "embedding", MICROSOFT, **lookup)
        norm = "blk.0.attn_norm"
        normed = self.node(
            "SimplifiedLayerNormalization", [hidden, self.vector(norm + ".weight")], norm, axis=-1, epsilon=self.epsilon
        )
        for layer in range(self.layers):
            prefix = f"blk.{layer}."
            qkv = self.linear(normed, [f"{prefix}attn_{x}" for x in "qkv"], prefix + "qkv")
            past, present = [], []
            for x in ("key", "value"):
                dims = ["B", self.kv_heads, "P", self.head_dim]
                past.append(f"past_key_values.{layer}.{x}")
                inputs.append(helper.make_tensor_value_info(past[-1], kind, dims))
                present.append(f"present.{layer}.{x}")
                outputs.append(helper.make_tensor_value_info(present[-1], kind, [*dims[:2], "P_new", dims[3]]))
            attributes = {"num_heads": self.heads, "kv_num_heads": self.kv_heads, "do_rotary": 1}
            arguments = [qkv, "", "", *past, seqlens, total, cos, sin]
            if self.cache == "int8":
                scale = self.constant("cache_scale", np.array([CACHE_SCALE], np.float32))
                arguments += ["", "", "", scale, scale]
                attributes |= {"k_quant_type": "PER_TENSOR", "v_quant_type": "PER_TENSOR", "kv_cache_bit_width": 8}
            attended = prefix + "attention"
            self.node("GroupQueryAttention", arguments, attended, MICROSOFT, [attended, *present], **attributes)
            output = self.linear(attended, [prefix + "attn_output"], prefix + "attn_output")
            hidden, normed = self.add_and_norm(hidden, output, prefix + "ffn_norm")
            gate = self.linear(normed, [prefix + "ffn_gate"], prefix + "gate")
            up = self.linear(normed, [prefix + "ffn_up"], prefix + "up")
            silu = self.node("QuickGelu", [gate], prefix + "silu", MICROSOFT, alpha=1.0)
            inner = self.node("Mul", [silu, up], prefix + "inner")
            down = self.linear(inner, [prefix + "ffn_down"], prefix + "down")
            last = layer == self.layers - 1
            norm = "output_norm" if last else f"blk.{layer + 1}.attn_norm"
            hidden, normed = self.add_and_norm(hidden, down, norm, last)
        newest = self.node("Gather", [normed, self.constant("newest", np.array([-1], np.int64))], "newest_of", axis=1)
        self.product(newest, table, table_scales, self.vocab, self.hidden, "logits")
        graph = helper.make_graph(self.nodes, "decoder", inputs, outputs, self.initializers)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
        self.file.close()
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def genai_config(self) -> dict:
        return {
            "model": {
                "bos_token_id": 0,
                "eos_token_id": [0],
                "pad_token_id": 0,
                "context_length": self.context,
                "vocab_size": self.vocab,
                "type": "qwen2",
                "decoder": {
                    "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                    "filename": "model.onnx",
                    "head_size": self.head_dim,
                    "hidden_size": self.hidden,
                    "num_attention_heads": self.heads,
                    "num_hidden_layers": self.layers,
                    "num_key_value_heads": self.kv_heads,
                    "inputs": {
                        "input_ids": "input_ids",
                        "attention_mask": "attention_mask",
                        "past_key_names": "past_key_values.%d.key",
                        "past_value_names": "past_key_values.%d.value",
                    },
                    "outputs": {
                        "logits": "logits",
                        "present_key_names": "present.%d.key",
                        "present_value_names": "present.%d.value",
                    },
                },
            },
            "search": {"max_length": self.context, "past_present_share_buffer": True, "do_sample": False, "top_k": 1},
        }


def write(source: Path, folder: Path, cache: str = "fp32") -> None:
    """cache: fp32, or int8 with one scale for all."""
    folder.mkdir(parents=True, exist_ok=True)
    builder = Builder(source, folder / "model.onnx.data", cache)
    (folder / "model.onnx").write_bytes(builder.build().SerializeToString())
    (folder / "genai_config.json").write_text(json.dumps(builder.genai_config(), indent=1))
