"""Builds the decoder graph from a checkpoint, layer by layer, streaming its weights to disk.

`Decoder` writes operators that ONNX Runtime's CPU provider has kernels for: RMSNormalization, and from the first residual on com.microsoft SkipSimplifiedLayerNormalization, which is the same norm
with the addition in front of it; QuickGelu with alpha 1, which is SiLU; MatMulNBits with 8-bit activations. `PackedDecoder` writes the library's own for
quantised weights, which read them in place: five nodes a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import TensorProto

from . import quantize
from .checkpoint import Checkpoint
from .errors import ExportError
from .graph import FLAVOURS, MICROSOFT, OWN_DOMAIN, Graph
from .quantize import BLOCK, PANEL_ROWS
from .tensors import StoredTensor
from .weights_file import WeightsFile

# Bits per weight of linear layers (but see Decoder.bits_of and Decoder.table_bits); None is float32.
WEIGHTS = {"fp32": None, "int8": 8, "int4": 4}
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"


def build_decoder(
    checkpoint: Checkpoint, weights: str, flavour: str, file: WeightsFile, advance: Callable[[int], None]
) -> onnx.ModelProto:
    """The graph, its weights already written to `file`; `advance` is told how many weights were just written."""
    bits = WEIGHTS[weights]
    kind = Decoder if bits is None or flavour == "portable" else PackedDecoder
    return kind(checkpoint, bits, flavour, file, advance).build()


class Decoder:
    """Embedding, blocks, final norm and head; the flavour supplies inputs and attention."""

    def __init__(
        self, checkpoint: Checkpoint, bits: int | None, flavour: str, file: WeightsFile, advance: Callable[[int], None]
    ):
        self.tensors, self.config = checkpoint.tensors, checkpoint.config
        self.bits = bits
        self.weights = file
        self.advance = advance
        if bits is not None:
            self.check_block_multiples()
        self.graph = Graph(file)
        self.attention = FLAVOURS[flavour](self.graph, self.config)
        self.leading = self.attention.leading  # leading dimensions of hidden states
        self.constants: dict[str, str] = {}
        self.block_sums: dict[str, str] = {}  # value -> its sums over blocks
        self.formats: dict[str, str] = {}  # packed matrix -> its blocks

    def check_block_multiples(self) -> None:
        for name, (_, width) in self.config.projections().items():
            if width % BLOCK:
                raise ExportError(f"{name} reads {width} values, not a multiple of the block of {BLOCK}: export fp32")

    def build(self) -> onnx.ModelProto:
        config = self.config
        hidden = self.embed(self.attention.input_ids)
        norm = self.vector("model.layers.0.input_layernorm.weight")
        name = "layers.0.input_norm"
        normed = self.graph.node("RMSNormalization", [hidden, norm], name, axis=-1, epsilon=config.rms_norm_eps)
        for layer in range(config.num_layers):
            hidden, normed = self.block(layer, hidden, normed)
        logits = self.head(normed)
        self.graph.output(logits, TensorProto.FLOAT, ["N", config.vocab_size], first=True)
        return self.graph.model()

    # Blocks

    def block(self, layer: int, hidden: str, normed: str) -> tuple[str, str]:
        """One layer: residual stream and its norm in, residual stream and the *next* norm of it out."""
        last = layer == self.config.num_layers - 1
        source, prefix = f"model.layers.{layer}.", f"layers.{layer}."
        q, k, v = (self.linear(normed, layer, f"self_attn.{x}_proj") for x in "qkv")
        attended = self.attention.attend(layer, q, k, v)
        if last:
            # Everything after the last attention is per token: only the rows that get logits go on.
            attended = self.take_rows(attended, "attended", self.config.num_heads * self.config.head_dim)
            hidden = self.take_rows(hidden, "hidden", self.config.hidden_size)
            self.leading = 1
        output = self.linear(attended, layer, "self_attn.o_proj")
        hidden, normed = self.add_and_norm(
            hidden, output, source + "post_attention_layernorm.weight", prefix + "post_attention_norm"
        )
        gate = self.linear(normed, layer, "mlp.gate_proj")
        up = self.linear(normed, layer, "mlp.up_proj")
        silu = self.graph.node("QuickGelu", [gate], prefix + "silu", MICROSOFT, alpha=1.0)
        inner = self.graph.node("Mul", [silu, up], prefix + "gated")
        down = self.linear(inner, layer, "mlp.down_proj")
        if last:
            return self.add_and_norm(hidden, down, "model.norm.weight", "final_norm")
        following = layer + 1
        return self.add_and_norm(
            hidden, down, f"model.layers.{following}.input_layernorm.weight", f"layers.{following}.input_norm"
        )

    def take_rows(self, value: str, name: str, width: int) -> str:
        """[T, width] or [B, T, width] -> [N, width]: the rows that logits_rows names, of the flattened tokens."""
        if self.leading == 2:
            shape = self.constant(f"{name}_flat_shape", [-1, width])
            value = self.graph.node("Reshape", [value, shape], f"{name}_flat")
        return self.graph.node("Gather", [value, self.attention.logits_rows], f"{name}_of_logits_rows", axis=0)

    def add_and_norm(self, hidden: str, addend: str, weight: str, name: str) -> tuple[str, str]:
        """(hidden + addend, the RMS norm of that sum)."""
        total = name + ".sum"
        outputs = [name] if weight == "model.norm.weight" else [name, "", "", total]
        inputs = [hidden, addend, self.vector(weight)]
        epsilon = self.config.rms_norm_eps
        self.graph.node("SkipSimplifiedLayerNormalization", inputs, name, MICROSOFT, outputs, epsilon=epsilon)
        return total, name

    def vector(self, name: str) -> str:
        """A norm's weight or a bias, float32 [n]."""
        tensor = self.tensors[name]
        self.advance(tensor.weights)
        return self.weights.add(name, tensor.vector())

    # Linear layers

    def linear(self, x: str, layer: int, projection: str) -> str:
        """x [.., in] -> [.., out], with the projection's bias where it has one."""
        source = f"model.layers.{layer}.{projection}"
        name = f"layers.{layer}.{projection.split('.')[1]}"
        bias = self.vector(source + ".bias") if projection in self.config.biased else None
        tensor = self.tensors[source + ".weight"]
        if self.bits is None:
            return self.float_linear(x, tensor, bias, source, name)
        bits = self.bits_of(tensor, layer, projection)
        quants, scales, minimums = self.write_blocks(tensor, bits, source)
        if minimums is None:
            return self.block_product(x, quants, scales, bias, tensor.shape, bits, name)
        product = self.block_product(x, quants, scales, bias, tensor.shape, bits, name + ".symmetric")
        sums = self.sum_blocks(x, tensor.width)
        if self.leading == 1:
            return self.graph.node("Gemm", [sums, minimums, product], name)
        offset = self.graph.node("MatMul", [sums, minimums], name + ".offset")
        return self.graph.node("Add", [product, offset], name)

    def bits_of(self, tensor: StoredTensor, layer: int, projection: str) -> int:
        """Bits per weight. Where rounding to 4 bits would lose most for the bytes that it saves, 8 are kept: k and v,
        which grouped queries make small, and down in half of the layers, the outer ones and every third between.

        SmolLM2-135M from float weights, NLL of a tutorial's text against float32: +8.0% with 4 bits throughout, +4.3%
        like this, for 14% more bytes of linear layers. What a GGUF holds in 4-bit blocks stays as it is.
        """
        if self.bits != 4 or quantize.is_exact(tensor, 4):
            return self.bits
        layers = self.config.num_layers
        outer = layers // 8
        sensitive = layer < outer or layer >= layers - outer or (layer - outer) % 3 == 2
        kept = projection in ("self_attn.k_proj", "self_attn.v_proj") or (projection == "mlp.down_proj" and sensitive)
        return 8 if kept else 4

    def table_bits(self, tensor: StoredTensor) -> int:
        """Bits per weight of embedding and head: 8, but 4 where the source holds no more."""
        return 4 if self.bits == 4 and quantize.is_exact(tensor, 4) and not quantize.has_minimums(tensor, 4) else 8

    def float_linear(self, x: str, tensor: StoredTensor, bias: str | None, source: str, name: str) -> str:
        """MatMul with the weight stored as [in, out], the order that the product reads."""
        transposed = np.empty(tensor.shape[::-1], np.float32)
        for start, stop in tensor.chunks():
            transposed[:, start:stop] = tensor.rows(start, stop).T
            self.advance((stop - start) * tensor.width)
        weight = self.weights.stream(source + ".weight", transposed.shape, np.float32, [transposed])
        if bias is None:
            return self.graph.node("MatMul", [x, weight], name)
        return self.graph.node("Add", [self.graph.node("MatMul", [x, weight], name + ".product"), bias], name)

    def block_product(
        self, x: str, quants: str, scales: str, bias: str | None, shape: tuple[int, ...], bits: int, name: str
    ) -> str:
        """MatMulNBits, symmetric (no zero points). accuracy_level 4 multiplies 8-bit activations: the packed kernel."""
        inputs = [x, quants, scales] + (["", "", bias] if bias else [])
        attributes = {"N": shape[0], "K": shape[1], "bits": bits, "block_size": BLOCK, "accuracy_level": 4}
        return self.graph.node("MatMulNBits", inputs, name, MICROSOFT, **attributes)

    def sum_blocks(self, x: str, width: int) -> str:
        """Sums of x over blocks, [.., in / 32]; computed once for all projections that read the same x."""
        if x not in self.block_sums:
            # A zero keeps the dimension of x.
            shape = self.constant(f"blocks_of_{width}_in_{self.leading}", [0] * self.leading + [width // BLOCK, BLOCK])
            blocks = self.graph.node("Reshape", [x, shape], x + ".blocks")
            axis = self.constant("last_axis", [-1])
            self.block_sums[x] = self.graph.node("ReduceSum", [blocks, axis], x + ".block_sums", keepdims=0)
        return self.block_sums[x]

    def constant(self, name: str, values: list[int]) -> str:
        """Integers, int64 [n]; written once per name."""
        if name not in self.constants:
            self.constants[name] = self.weights.add(name, np.array(values, np.int64))
        return name

    def write_blocks(self, tensor: StoredTensor, bits: int, name: str) -> tuple[str, str, str | None]:
        """Writes a matrix in blocks: the names of its quants, scales and minimums.

        Shapes: uint8 [out, in/32, bytes], float32 [out, in/32] and, where the encoding has them, float32 [in/32, out].
        """
        rows, blocks = tensor.num_rows, tensor.width // BLOCK
        scales = np.empty((rows, blocks), np.float32)
        minimums = np.empty((blocks, rows), np.float32) if quantize.has_minimums(tensor, bits) else None

        def pieces() -> Iterator[np.ndarray]:
            for start, stop in tensor.chunks():
                piece = quantize.encode(tensor, bits, start, stop)
                scales[start:stop] = piece.scales
                if minimums is not None:
                    minimums[:, start:stop] = quantize.stock_minimums(piece).T
                yield quantize.stock_quants(piece, bits)
                self.advance((stop - start) * tensor.width)

        shape = (rows, blocks, BLOCK * bits // 8)
        return (
            self.weights.stream(name + ".quants", shape, np.uint8, pieces()),
            self.weights.add(name + ".scales", scales),
            None if minimums is None else self.weights.add(name + ".minimums", minimums),
        )

    # Embedding and head: one table in the file where they are tied

    def embed(self, input_ids: str) -> str:
        tensor = self.tensors[EMBEDDING + ".weight"]
        if self.bits is None:
            table = self.write_rows(tensor, EMBEDDING)
            return self.graph.node("Gather", [table, input_ids], "embedding", axis=0)
        bits = self.table_bits(tensor)
        quants, scales, _ = self.write_blocks(tensor, bits, EMBEDDING)
        table = self.weights.alias("embedding.quants", (tensor.num_rows, tensor.width * bits // 8), quants)
        attributes = {"bits": bits, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
        inputs = [table, input_ids, scales]
        return self.graph.node("GatherBlockQuantized", inputs, "embedding", MICROSOFT, **attributes)

    def head(self, x: str) -> str:
        """x [N, hidden] -> logits [N, vocab]."""
        tied = self.config.tied_head
        tensor = self.tensors[(EMBEDDING if tied else HEAD) + ".weight"]
        if self.bits is None:
            # Gemm reads [out, in]: a tied table is shared, and no large matrix has to be transposed.
            table = EMBEDDING + ".weight" if tied else self.write_rows(tensor, HEAD)
            return self.graph.node("Gemm", [x, table], "logits", transB=1)
        bits = self.table_bits(tensor)
        if tied:
            quants, scales = EMBEDDING + ".quants", EMBEDDING + ".scales"
        else:
            quants, scales, _ = self.write_blocks(tensor, bits, HEAD)
        return self.block_product(x, quants, scales, None, tensor.shape, bits, "logits")

    def write_rows(self, tensor: StoredTensor, name: str) -> str:
        """A matrix as it is, float32 [out, in]."""

        def pieces() -> Iterator[np.ndarray]:
            for start, stop in tensor.chunks():
                yield tensor.rows(start, stop)
                self.advance((stop - start) * tensor.width)

        return self.weights.stream(name + ".weight", tensor.shape, np.float32, pieces())


class PackedDecoder(Decoder):
    """Quantised, for the library's own operators: `QuantizedLinear` has the norm in front, products that read the same
    input side by side, gate and residual behind; `QuantizedGather` is the embedding.
    """

    def build(self) -> onnx.ModelProto:
        hidden = self.embed(self.attention.input_ids)
        for layer in range(self.config.num_layers):
            hidden = self.packed_block(layer, hidden)
        table = EMBEDDING if self.config.tied_head else HEAD
        if not self.config.tied_head:
            self.write_packed(table, self.table_bits(self.tensors[HEAD + ".weight"]))
        logits = self.products(hidden, [table], ["logits"], norm="model.norm")[0]
        self.graph.output(logits, TensorProto.FLOAT, ["N", self.config.vocab_size], first=True)
        return self.graph.model()

    def packed_block(self, layer: int, hidden: str) -> str:
        source, prefix = f"model.layers.{layer}.", f"layers.{layer}."
        attention = [f"{source}self_attn.{x}_proj" for x in "qkv"]
        q, k, v = self.linears(hidden, attention, prefix, norm=source + "input_layernorm")
        attended = self.attention.attend(layer, q, k, v)
        if layer == self.config.num_layers - 1:
            # Everything after the last attention is per token: only the rows that get logits go on.
            attended = self.take_rows(attended, "attended", self.config.num_heads * self.config.head_dim)
            hidden = self.take_rows(hidden, "hidden", self.config.hidden_size)
        (hidden,) = self.linears(attended, [source + "self_attn.o_proj"], prefix, addend=hidden)
        gates = [source + "mlp.gate_proj", source + "mlp.up_proj"]
        (inner,) = self.linears(hidden, gates, prefix, norm=source + "post_attention_layernorm", gated=1)
        (hidden,) = self.linears(inner, [source + "mlp.down_proj"], prefix, addend=hidden)
        return hidden

    def linears(self, x: str, sources: list[str], prefix: str, **fused) -> list[str]:
        """Some projections of a layer, written and multiplied."""
        for source in sources:
            _, _, _, projection = source.split(".", 3)
            layer = int(source.split(".")[2])
            self.write_packed(source, self.bits_of(self.tensors[source + ".weight"], layer, projection))
        names = [prefix + source.rpartition(".")[2] for source in sources]
        return self.products(x, sources, names, **fused)

    def products(
        self,
        x: str,
        sources: list[str],
        names: list[str],
        norm: str | None = None,
        addend: str | None = None,
        gated: int = 0,
    ) -> list[str]:
        """One node: the RMS norm of x, its products with matrices that were written, biases, then the gate or the
        addend. x [T, width] -> [T, rows] each; of a gated pair, silu(first) * second."""
        inputs = [x, "" if norm is None else self.vector(norm + ".weight"), addend or ""]
        for source in sources:
            biased = source + ".bias" in self.tensors and source not in (EMBEDDING, HEAD)
            inputs += [source + ".packed", self.vector(source + ".bias") if biased else ""]
        while not inputs[-1]:
            inputs.pop()
        rows = [self.tensors[source + ".weight"].num_rows for source in sources]
        outputs = [f"{names[0]}.gated"] if gated else names
        for output, count in zip(outputs, rows, strict=False):
            if output != "logits":
                self.graph.declare(output, TensorProto.FLOAT, [None, count])
        self.graph.node(
            "QuantizedLinear",
            inputs,
            outputs[0],
            OWN_DOMAIN,
            outputs,
            width=self.tensors[sources[0] + ".weight"].width,
            rows=rows,
            formats=",".join(self.formats[source] for source in sources),
            epsilon=float(self.config.rms_norm_eps),
            gated=gated,
        )
        return outputs

    def write_packed(self, source: str, bits: int) -> str:
        tensor = self.tensors[source + ".weight"]
        block_format = self.formats[source] = quantize.format_of(tensor, bits)

        def pieces() -> Iterator[np.ndarray]:
            for start, stop in tensor.chunks(PANEL_ROWS):
                yield quantize.pack(quantize.encode(tensor, bits, start, stop), block_format)
                self.advance((stop - start) * tensor.width)

        shape = quantize.packed_shape(*tensor.shape, block_format)
        return self.weights.stream(source + ".packed", shape, np.uint8, pieces())

    def embed(self, input_ids: str) -> str:
        tensor = self.tensors[EMBEDDING + ".weight"]
        table = self.write_packed(EMBEDDING, self.table_bits(tensor))
        self.graph.declare("embedding", TensorProto.FLOAT, ["T", tensor.width])
        attributes = {"format": self.formats[EMBEDDING], "rows": tensor.num_rows, "width": tensor.width}
        return self.graph.node("QuantizedGather", [input_ids, table], "embedding", OWN_DOMAIN, **attributes)
