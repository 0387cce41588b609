"""One golden compression after another through rrpc_compressor_compress, and what came of it.

Usage: compressor_run.py CASE.safetensors dense|head_major|token_major OUT.npz

A process of its own for each: the instruction set is chosen once.
"""

import json
import sys
from ctypes import POINTER, byref, c_float, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p, sizeof

import numpy as np
from rrpc import Library, Struct, fields
from safetensors import safe_open

DTYPES = {"float32": 1, "bfloat16": 3}
AGGREGATION = {"all": 0, "group": 1}
POOLING = {"avgpool": 0, "maxpool": 1}
BLOCK = 16


class CompressorOptions(Struct):
    _fields_ = fields(
        (c_uint32, "device device_index heads kv_heads head_dim dtype"),
        (c_float, "scale"),
        (c_uint32, "policy interval window ratio aggregation pooling kernel"),
        (c_uint32, "max_merges recorded_layers recorded_sequences reserved"),
        (c_void_p, "select user_data"),
        (c_uint64, "budget_entries seed"),
        (c_void_p, "inv_freq"),
        (c_uint32, "rotary_dim rope_style"),
    )


class KvLayer(Struct):
    _fields_ = fields(
        (c_void_p, "keys values key_scales value_scales"),
        (c_int64 * 3, "key_strides value_strides key_scale_strides value_scale_strides"),
        (c_uint32, "layer reserved"),
        (c_void_p, "history"),
        (c_int64 * 3, "history_strides"),
    )


class KvBatch(Struct):
    _fields_ = fields(
        (c_void_p, "lengths prompt_lengths compressions rows block_table"),
        (c_int64, "block_table_stride"),
        (c_void_p, "shared_blocks"),
        (c_size_t, "shared_count"),
        (c_void_p, "spare_blocks"),
        (c_size_t, "spare_count"),
        (c_void_p, "stream"),
        (c_uint32, "sequences row_count block_entries block_count"),
    )


class QueryWindow(Struct):
    _fields_ = fields(
        (c_void_p, "queries"),
        (c_int64 * 3, "strides"),
        (c_void_p, "oldest slots"),
        (c_uint32, "ring_tokens dtype"),
    )


class Plan(Struct):
    _fields_ = fields(
        (POINTER(c_uint32), "kept_counts kept"),
        (c_size_t, "kept_len"),
        (POINTER(c_int32), "new_lengths"),
        (c_void_p, "copies"),
        (c_size_t, "copy_count"),
        (POINTER(c_int32), "freed_blocks"),
        (c_size_t, "freed_count"),
        (c_void_p, "merges"),
        (c_size_t, "merge_count"),
        (c_uint32, "sequences sets"),
        (POINTER(c_float), "history key_shifts key_directions"),
    )


class Sizes(Struct):
    _fields_ = fields((c_size_t, "workspace_bytes score_count"))


def strides_of(array: np.ndarray, order: tuple[int, int, int]) -> c_int64 * 3:
    return (c_int64 * 3)(*(array.strides[axis] // array.itemsize for axis in order))


def place(dense: np.ndarray, layout: str, table: np.ndarray) -> np.ndarray:
    """`[sequence][KV head][entry][head_dim]` in the memory of a host; blocks are those of the table."""
    if layout == "dense":
        return dense.copy()
    batch, heads, length, dim = dense.shape
    pages = np.full((table.max() + 1, heads, BLOCK, dim), 7, dense.dtype)
    for sequence in range(batch):
        for index, block in enumerate(table[sequence]):
            part = dense[sequence, :, index * BLOCK : (index + 1) * BLOCK]
            pages[block, :, : part.shape[1]] = part
    return pages if layout == "head_major" else np.ascontiguousarray(pages.transpose(0, 2, 1, 3))


def gather(memory: np.ndarray, layout: str, table: np.ndarray, length: int) -> np.ndarray:
    if layout == "dense":
        return memory[:, :, :length]
    if layout == "token_major":
        memory = memory.transpose(0, 2, 1, 3)
    return np.stack([np.concatenate(memory[row], axis=1)[:, :length] for row in table])


def calls(library: Library):
    """The compressor's functions by their names."""
    library.dll.rrpc_compressor_free.argtypes = [c_void_p]

    def call(name: str, *arguments) -> None:
        function = getattr(library.dll, f"rrpc_compressor_{name}")
        function.restype = c_void_p
        library._checked(function)(*arguments)

    return call


def run(path: str, layout: str) -> dict[str, np.ndarray]:
    library = Library()
    call = calls(library)
    with safe_open(path, "np") as file:
        case = json.loads(file.metadata()["case"])
        # numpy has no bfloat16: the bits.
        tensors = {name: bits(path, name) if case["dtype"] == "bfloat16" else file.get_tensor(name) for name in "qkv"}
    options = CompressorOptions()
    call("options_init", byref(options), c_size_t(sizeof(options)))
    options.heads, options.kv_heads = case["num_q_heads"], case["num_kv_heads"]
    options.head_dim = case["head_dim"]
    options.dtype = DTYPES[case["dtype"]]
    options.interval, options.window, options.ratio = case["P"], case["R"], case["c"]
    options.aggregation, options.pooling = AGGREGATION[case["aggregation"]], POOLING[case["pooling"]]
    options.kernel = case["kernel_size"]
    compressor = c_void_p()
    call("create", byref(options), byref(compressor))

    batch_size, length = case["batch"], case["cache_len_before"]
    width = -(-length // BLOCK)
    table = np.random.default_rng(1).permutation(batch_size * width + 3)[: batch_size * width].astype(np.int32)
    table = table.reshape(batch_size, width)
    keys, values = place(tensors["k"], layout, table), place(tensors["v"], layout, table)
    layer = KvLayer()
    order = (0, 2, 1) if layout == "token_major" else (0, 1, 2)
    layer.keys, layer.values = keys.ctypes.data, values.ctypes.data
    layer.key_strides, layer.value_strides = strides_of(keys, order), strides_of(values, order)

    def each(number: int) -> np.ndarray:
        return np.full(batch_size, number, np.int32)

    lengths, prompts, done = each(length), each(case["prompt_len"]), each(case["num_comp"])
    batch = KvBatch()
    batch.lengths, batch.prompt_lengths = lengths.ctypes.data, prompts.ctypes.data
    batch.compressions = done.ctypes.data
    batch.sequences = batch.row_count = batch_size
    batch.block_entries = length
    if layout != "dense":
        batch.block_table, batch.block_table_stride = table.ctypes.data, width
        batch.block_entries, batch.block_count = BLOCK, int(table.max()) + 1
    queries = tensors["q"]
    window = QueryWindow()
    window.queries, window.strides = queries.ctypes.data, strides_of(queries, (0, 2, 1))
    window.ring_tokens, window.dtype = case["R"], options.dtype

    sizes, plan = Sizes(), Plan()
    call("get_sizes", compressor, byref(batch), byref(sizes))
    workspace = np.empty(sizes.workspace_bytes, np.uint8)
    work = c_void_p(workspace.ctypes.data), c_size_t(workspace.nbytes)
    call("compress", compressor, byref(layer), byref(batch), byref(window), *work, byref(plan))
    library.dll.rrpc_compressor_free(compressor)
    after = plan.new_lengths[:batch_size]
    assert len(set(after)) == 1
    counts = plan.kept_counts[:batch_size]
    return {
        "kept": np.array(plan.kept[: plan.kept_len]).reshape(batch_size, plan.sets, counts[0]),
        "k": gather(keys, layout, table, after[0]),
        "v": gather(values, layout, table, after[0]),
        "freed": np.array(sorted(plan.freed_blocks[: plan.freed_count])),
        "expected_freed": np.sort(table[:, -(-after[0] // BLOCK) :], axis=None) if layout != "dense" else np.array([]),
    }


def bits(path: str, name: str) -> np.ndarray:
    """A bfloat16 tensor as uint16."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        info = json.loads(file.read(size))[name]
        begin, end = info["data_offsets"]
        file.seek(8 + size + begin)
        return np.frombuffer(file.read(end - begin), np.uint16).reshape(info["shape"]).copy()


if __name__ == "__main__":
    np.savez(sys.argv[3], **run(sys.argv[1], sys.argv[2]))
