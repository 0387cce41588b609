"""The structure of the graph: its contract, its operators, and where its weights lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import GOLDEN, export_to
from onnx import TensorProto
from synthetic import make_model, write_gguf, write_huggingface

from reasoning_rpc_export import cli, decoder, graph

MODEL = GOLDEN / "generation" / "qwen2_p32"
LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 3, 4, 2, 16, 96


def signature(values) -> dict[str, tuple]:
    def shape(value) -> list:
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    return {value.name: (value.type.tensor_type.elem_type, shape(value)) for value in values}


def load(folder: Path) -> onnx.ModelProto:
    return onnx.load(folder / "model.onnx", load_external_data=False)


def nodes_of(model: onnx.ModelProto, operator: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == operator]


def attributes_of(node: onnx.NodeProto) -> dict:
    return {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}


def test_the_command_offers_what_there_is():
    actions = {action.dest: action for action in cli.parser()._actions}
    assert set(actions["weights"].choices) == set(decoder.WEIGHTS)
    assert set(actions["flavour"].choices) == set(graph.FLAVOURS)
    defaults = cli.parser().parse_args(["source", "dest"])
    assert (defaults.weights, defaults.flavour) == ("int4", "cached")


@pytest.mark.parametrize("flavour", ["cached", "portable"])
@pytest.mark.parametrize("weights", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("kind", ["golden", "Q4_1"])
def test_the_onnx_checker_accepts_it(kind: str, weights: str, flavour: str, rng: np.random.Generator, tmp_path: Path):
    source = MODEL if kind == "golden" else write_gguf(make_model(rng, "llama"), tmp_path / "m.gguf", rng, kind)
    export_to(source, tmp_path / "out", weights, flavour)
    onnx.checker.check_model(tmp_path / "out" / "model.onnx", full_check=True)
    model = load(tmp_path / "out")
    assert {entry.key: entry.value for entry in model.metadata_props} == {"graph_contract": "2"}
    packed = flavour == "cached" and weights != "fp32"
    domains = {""} | (set() if packed else {"com.microsoft"}) | ({"reasoning_rpc"} if flavour == "cached" else set())
    assert {opset.domain for opset in model.opset_import} == domains
    names = [name for node in model.graph.node for name in node.output if name]
    names += [value.name for value in (*model.graph.input, *model.graph.initializer)]
    assert len(names) == len(set(names))


def test_cached_contract(tmp_path: Path):
    export_to(MODEL, tmp_path / "out")
    model = load(tmp_path / "out")
    assert signature(model.graph.input) == {
        "input_ids": (TensorProto.INT64, ["T"]),
        "positions": (TensorProto.INT64, ["T"]),
        "row_offsets": (TensorProto.INT32, ["B_plus_1"]),
        "slots": (TensorProto.INT64, ["B"]),
        "logits_rows": (TensorProto.INT32, ["N"]),
    }
    assert signature(model.graph.output) == {"logits": (TensorProto.FLOAT, ["N", VOCAB])}
    attention = nodes_of(model, "CachedAttention")
    assert len(attention) == LAYERS
    for layer, node in enumerate(attention):
        assert node.domain == "reasoning_rpc"
        assert node.input[3:] == ["positions", "row_offsets", "slots", "inv_freq"]
        assert attributes_of(node) == {
            "layer": layer,
            "num_heads": HEADS,
            "num_kv_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
            "scale": 0.25,
            "rope_attention_factor": 1.0,
        }
        kinds = {entry.name: entry.type for entry in node.attribute}
        assert kinds["scale"] == kinds["rope_attention_factor"] == onnx.AttributeProto.FLOAT
    inv_freq = next(tensor for tensor in model.graph.initializer if tensor.name == "inv_freq")
    found = onnx.numpy_helper.to_array(inv_freq)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [10000 ** (-pair / 8) for pair in range(8)], rtol=1e-7)


def test_portable_contract(tmp_path: Path):
    export_to(MODEL, tmp_path / "out", "fp32", "portable")
    model = load(tmp_path / "out")
    inputs = {
        "input_ids": (TensorProto.INT64, ["B", "T"]),
        "positions": (TensorProto.INT64, ["B", "T"]),
        "seqlens_k": (TensorProto.INT32, ["B"]),
        "total_sequence_length": (TensorProto.INT32, []),
        "logits_rows": (TensorProto.INT32, ["N"]),
    }
    outputs = {"logits": (TensorProto.FLOAT, ["N", VOCAB])}
    for layer in range(LAYERS):
        outputs[f"query_{layer}"] = (TensorProto.FLOAT, ["B", "T", HEADS * HEAD_DIM])
        for kind in ("key", "value"):
            inputs[f"past_{kind}_{layer}"] = (TensorProto.FLOAT, ["B", KV_HEADS, "S", HEAD_DIM])
            outputs[f"present_{kind}_{layer}"] = (TensorProto.FLOAT, ["B", KV_HEADS, "S_present", HEAD_DIM])
    assert signature(model.graph.input) == inputs
    assert signature(model.graph.output) == outputs
    for layer, node in enumerate(nodes_of(model, "GroupQueryAttention")):
        assert node.input[0] == f"query_{layer}"  # rotated
        assert list(node.output[1:]) == [f"present_key_{layer}", f"present_value_{layer}"]
    assert len(nodes_of(model, "RotaryEmbedding")) == 2 * LAYERS


@pytest.mark.parametrize("weights", ["fp32", "int4"])
@pytest.mark.parametrize("flavour", ["cached", "portable"])
def test_rows_are_gathered_before_the_last_norm_and_head(flavour: str, weights: str, tmp_path: Path):
    export_to(MODEL, tmp_path / "out", weights, flavour)
    order = [node.name for node in load(tmp_path / "out").graph.node]
    gathers = [order.index(name) for name in ("attended_of_logits_rows", "hidden_of_logits_rows")]
    assert order.index(f"layers.{LAYERS - 1}.attention") < min(gathers)
    first = f"layers.{LAYERS - 1}.o_proj"
    products = [order.index(name) for name in order if name.startswith(first)]
    assert max(gathers) < min(products) < order.index("logits") == len(order) - 1


@pytest.mark.parametrize("weights", ["fp32", "int8", "int4"])
def test_weights_lie_on_pages_and_fill_the_file(weights: str, rng: np.random.Generator, tmp_path: Path):
    model = make_model(rng, "qwen2", hidden_size=128)
    manifest = export_to(write_huggingface(model, tmp_path / "in"), tmp_path / "out", weights)
    size = (tmp_path / "out" / "model.onnx.data").stat().st_size
    assert manifest["files"]["model.onnx.data"]["size"] == size
    regions = set()
    for tensor in load(tmp_path / "out").graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            assert len(tensor.raw_data) < 1024, tensor.name
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        offset, length = int(place["offset"]), int(place["length"])
        width = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        assert place["location"] == "model.onnx.data"
        assert offset % 4096 == 0
        assert length == width * int(np.prod(tensor.dims)), tensor.name
        regions.add((offset, length))
    end = 0
    for offset, length in sorted(regions):
        assert 0 <= offset - end < 4096
        end = offset + length
    assert end == size


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("weights", ["fp32", "int8", "int4"])
def test_a_tied_head_shares_the_bytes_of_the_embedding(
    weights: str, tied: bool, rng: np.random.Generator, tmp_path: Path
):
    model = make_model(rng, "llama", tie_word_embeddings=tied)
    export_to(write_huggingface(model, tmp_path / "in"), tmp_path / "out", weights)
    loaded = load(tmp_path / "out")
    places = {
        tensor.name: [entry.value for entry in tensor.external_data if entry.key == "offset"]
        for tensor in loaded.graph.initializer
    }
    by_name = {node.name: node for node in loaded.graph.node}
    if weights == "fp32":
        table, head = by_name["embedding"].input[0], by_name["logits"].input[1]
    else:
        table, head = by_name["embedding"].input[1], by_name["logits"].input[3]
        assert attributes_of(by_name["embedding"])["format"] == b"q8_0"
        assert attributes_of(by_name["logits"])["formats"] == b"q8_0"
    assert (places[table] == places[head]) == tied


@pytest.mark.parametrize("flavour", ["cached", "portable"])
def test_tables_keep_the_four_bits_of_a_gguf(flavour: str, rng: np.random.Generator, tmp_path: Path):
    model = make_model(rng, "llama", tie_word_embeddings=False)
    export_to(write_gguf(model, tmp_path / "model.gguf", rng, "Q4_0"), tmp_path / "out", "int4", flavour)
    by_name = {node.name: attributes_of(node) for node in load(tmp_path / "out").graph.node}
    if flavour == "cached":
        assert (by_name["embedding"]["format"], by_name["logits"]["formats"]) == (b"q4_0", b"q4_0")
    else:
        assert by_name["embedding"]["bits"] == by_name["logits"]["bits"] == 4


def test_block_sums_are_shared(rng: np.random.Generator, tmp_path: Path):
    """Q4_1: one sum for q, k and v, one for o, one for gate and up, one for down."""
    model = make_model(rng, "llama")
    export_to(write_gguf(model, tmp_path / "model.gguf", rng, "Q4_1"), tmp_path / "out", "int4", "portable")
    assert len(nodes_of(load(tmp_path / "out"), "ReduceSum")) == 4 * model.config["num_hidden_layers"]


@pytest.mark.parametrize(("weights", "bits"), [("int8", 8), ("int4", 4)])
def test_quantised_layers_have_the_form_of_the_packed_kernel(weights: str, bits: int, tmp_path: Path):
    """Symmetric blocks of 32 at accuracy_level 4: zero points or another level fall back to a far slower kernel."""
    export_to(MODEL, tmp_path / "out", weights, "portable")
    products = nodes_of(load(tmp_path / "out"), "MatMulNBits")
    assert len(products) == 7 * LAYERS + 1
    for node in products:
        attributes = attributes_of(node)
        # Of three layers none is an outer one, and the last is the third between them.
        kept = node.name.endswith(("k_proj", "v_proj")) or node.name == "layers.2.down_proj"
        assert attributes["bits"] == (8 if node.name == "logits" or kept else bits), node.name
        assert (attributes["block_size"], attributes["accuracy_level"]) == (32, 4)
        assert len(node.input) == 3 or list(node.input[3:5]) == ["", ""]


@pytest.mark.parametrize(("weights", "kind"), [("int8", "q8_0"), ("int4", "q4_0")])
def test_five_nodes_a_layer(weights: str, kind: str, tmp_path: Path):
    """The library's own operators: norms, gates and residuals are part of the products."""
    export_to(MODEL, tmp_path / "out", weights)
    model = load(tmp_path / "out")
    assert len(model.graph.node) == 1 + 5 * LAYERS + 2 + 1  # embedding, layers, rows that get logits, head
    products = nodes_of(model, "QuantizedLinear")
    assert len(products) == 4 * LAYERS + 1
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    hidden = shapes["model.norm.weight"][0]
    for node in products:
        attributes = attributes_of(node)
        assert node.domain == "reasoning_rpc" and node.input[-1] != ""
        assert attributes["epsilon"] == pytest.approx(1e-6)
        normed = "down_proj" not in node.name and "o_proj" not in node.name
        assert bool(node.input[1]) == normed
        assert len(node.input) > 2 and bool(node.input[2]) == (not normed)
        assert attributes["gated"] == int(node.name.endswith(".gated"))
        assert len(node.output) == (1 if attributes["gated"] else len(attributes["rows"]))
        for index, (rows, found) in enumerate(zip(attributes["rows"], attributes["formats"].decode().split(","), strict=True)):
            source = node.input[3 + 2 * index].removesuffix(".packed")
            kept = source.endswith(("k_proj", "v_proj")) or source == "model.layers.2.mlp.down_proj"
            expected = "q8_0" if node.name == "logits" or kept else kind
            assert found == expected, source
            tile = {"q4_0": 576, "q8_0": 1088}[expected]
            width = attributes["width"]
            assert shapes[source + ".packed"] == [-(-rows // 16) * -(-width // 64) * tile]
    assert attributes_of(products[0])["width"] == hidden


def test_the_same_export_twice_gives_the_same_bytes(tmp_path: Path):
    first = export_to(MODEL, tmp_path / "first", "int4")
    second = export_to(MODEL, tmp_path / "second", "int4")
    assert first == second
