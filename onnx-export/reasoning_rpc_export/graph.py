"""The two flavours of graph contract 2: inputs, outputs and attention.

`cached` has one `reasoning_rpc::CachedAttention` per layer and packs the tokens of all rows without padding: hidden
states are [T, hidden]. `portable` runs on stock ONNX Runtime with KV tensors as inputs and outputs: hidden states are
[B, T, hidden].
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper

from . import __version__
from .families import ModelConfig
from .rope import Rope
from .tensors import CHUNK_WEIGHTS
from .weights_file import WeightsFile

GRAPH_CONTRACT = 2
OPSET = 23  # the first with RMSNormalization
IR_VERSION = 11
MICROSOFT = "com.microsoft"
OWN_DOMAIN = "reasoning_rpc"


class Graph:
    """Nodes, inputs and outputs collected so far, beside the weights file they refer to."""

    def __init__(self, weights: WeightsFile):
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.declared: list[onnx.ValueInfoProto] = []

    def input(self, name: str, data_type: int, shape: Iterable[int | str]) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, data_type, tuple(shape)))
        return name

    def output(self, name: str, data_type: int, shape: Iterable[int | str], first: bool = False) -> str:
        value = helper.make_tensor_value_info(name, data_type, tuple(shape))
        self.outputs.insert(0 if first else len(self.outputs), value)
        return name

    def declare(self, name: str, data_type: int, shape: Iterable[int | str]) -> None:
        """States the type of a value that is neither input nor output."""
        self.declared.append(helper.make_tensor_value_info(name, data_type, tuple(shape)))

    def node(
        self,
        operator: str,
        inputs: list[str],
        name: str,
        domain: str = "",
        outputs: list[str] | None = None,
        **attributes,
    ) -> str:
        """Adds a node and returns its first output, which is called like the node unless `outputs` says otherwise."""
        outputs = outputs or [name]
        self.nodes.append(helper.make_node(operator, inputs, outputs, name=name, domain=domain, **attributes))
        return outputs[0]

    def model(self) -> onnx.ModelProto:
        domains = {"": OPSET, MICROSOFT: 1, OWN_DOMAIN: 1}
        used = {node.domain for node in self.nodes}
        opsets = [helper.make_opsetid(domain, version) for domain, version in domains.items() if domain in used]
        graph = helper.make_graph(
            self.nodes, "decoder", self.inputs, self.outputs, self.weights.initializers, value_info=self.declared
        )
        model = helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=IR_VERSION,
            producer_name="reasoning-rpc-export",
            producer_version=__version__,
        )
        helper.set_model_props(model, {"graph_contract": str(GRAPH_CONTRACT)})
        return model


class CachedAttention:
    """Attention over a cache that lives outside the graph; the operator rotates q and k itself."""

    def __init__(self, graph: Graph, config: ModelConfig):
        self.graph, self.config = graph, config
        self.leading = 1  # leading dimensions of hidden states: [T]
        self.input_ids = graph.input("input_ids", TensorProto.INT64, ["T"])
        self.state = [
            graph.input("positions", TensorProto.INT64, ["T"]),
            graph.input("row_offsets", TensorProto.INT32, ["B_plus_1"]),
            graph.input("slots", TensorProto.INT64, ["B"]),
        ]
        self.logits_rows = graph.input("logits_rows", TensorProto.INT32, ["N"])
        self.inv_freq = graph.weights.add("inv_freq", self.config.rope.inv_freq)

    def attend(self, layer: int, q: str, k: str, v: str) -> str:
        """q, k, v [T, heads * head_dim] before rotation -> [T, num_heads * head_dim]."""
        config = self.config
        name = f"layers.{layer}.attention"
        # Runtimes cannot infer the shape of an operator that they do not know, and fuse less without it.
        self.graph.declare(name, TensorProto.FLOAT, ["T", config.num_heads * config.head_dim])
        return self.graph.node(
            "CachedAttention",
            [q, k, v, *self.state, self.inv_freq],
            name,
            OWN_DOMAIN,
            layer=layer,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            scale=config.head_dim**-0.5,
            rope_attention_factor=float(config.rope.attention_factor),
        )


class PortableAttention:
    """RotaryEmbedding and GroupQueryAttention; past and present may be one buffer, rotated queries are outputs."""

    def __init__(self, graph: Graph, config: ModelConfig):
        self.graph, self.config = graph, config
        self.leading = 2  # [B, T]
        self.input_ids = graph.input("input_ids", TensorProto.INT64, ["B", "T"])
        self.positions = graph.input("positions", TensorProto.INT64, ["B", "T"])
        self.lengths = [
            graph.input("seqlens_k", TensorProto.INT32, ["B"]),
            graph.input("total_sequence_length", TensorProto.INT32, []),
        ]
        self.logits_rows = graph.input("logits_rows", TensorProto.INT32, ["N"])
        self.caches = [self._add_cache(index, name) for index, name in enumerate(("cos_cache", "sin_cache"))]

    def _add_cache(self, index: int, name: str) -> str:
        """One of Rope.caches for every position, float32 [max_positions, head_dim / 2]."""
        rope: Rope = self.config.rope
        rows, width = self.config.max_positions, self.config.head_dim // 2
        step = max(1, CHUNK_WEIGHTS // 8 // width)
        pieces = (rope.caches(start, min(start + step, rows))[index] for start in range(0, rows, step))
        return self.graph.weights.stream(name, (rows, width), np.float32, pieces)

    def attend(self, layer: int, q: str, k: str, v: str) -> str:
        """q, k, v [B, T, heads * head_dim] before rotation -> [B, T, num_heads * head_dim]."""
        graph, config = self.graph, self.config
        kv_shape = ["B", config.num_kv_heads, "S", config.head_dim]
        past = [graph.input(f"past_{x}_{layer}", TensorProto.FLOAT, kv_shape) for x in ("key", "value")]
        query = graph.output(f"query_{layer}", TensorProto.FLOAT, ["B", "T", config.num_heads * config.head_dim])
        kv_shape = ["B", config.num_kv_heads, "S_present", config.head_dim]
        present = [graph.output(f"present_{x}_{layer}", TensorProto.FLOAT, kv_shape) for x in ("key", "value")]
        prefix = f"layers.{layer}."
        rotary = [self.positions, *self.caches]
        graph.node("RotaryEmbedding", [q, *rotary], prefix + "rotate_q", MICROSOFT, [query], interleaved=0)
        key = graph.node("RotaryEmbedding", [k, *rotary], prefix + "rotate_k", MICROSOFT, interleaved=0)
        output = prefix + "attention"
        return graph.node(
            "GroupQueryAttention",
            [query, key, v, *past, *self.lengths],
            output,
            MICROSOFT,
            [output, *present],
            num_heads=config.num_heads,
            kv_num_heads=config.num_kv_heads,
            scale=config.head_dim**-0.5,
            do_rotary=0,
        )


FLAVOURS = {"cached": CachedAttention, "portable": PortableAttention}
