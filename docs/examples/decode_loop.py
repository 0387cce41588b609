"""A decode loop with a paged KV cache of its own, and what it takes to have that cache compressed in place.

    RRPC_LIBRARY=.../libreasoning_rpc.so python3 decode_loop.py

The loop stands for any host: a small transformer in numpy, several texts that begin at different times, a block table,
two texts that share a block of their prompt. Lines marked with RPC are what compression adds. Everything that the library
decides is checked against plain numpy.
"""

import ctypes
import math
import os
from ctypes import byref, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p

import numpy as np

from compressor import F32, Batch, Layer, Options, Plan, Sizes, Window, call, library

LAYERS, HEADS, KV_HEADS, DIM, VOCAB = 3, 4, 2, 16, 50
BLOCK, BLOCKS, TEXTS, TOKENS = 8, 64, 3, 150
P, R, C, KERNEL = 32, 8, 4, 7  # every P generated tokens the newest R choose which of the others stay, one in C

# ---- The host: a model and its cache ----

seed = int(os.environ.get("SEED", np.random.SeedSequence().entropy % 2**32))
print(f"SEED={seed}")
random = np.random.default_rng(seed)
width = HEADS * DIM
matrix = lambda *shape: random.standard_normal(shape, np.float32) / np.sqrt(np.float32(shape[0]))
embedding = random.standard_normal((VOCAB, width), np.float32)
shapes = {"q": HEADS * DIM, "k": KV_HEADS * DIM, "v": KV_HEADS * DIM, "o": width}
weights = [{name: matrix(width, out) for name, out in shapes.items()} for _ in range(LAYERS)]

keys, values = np.zeros((2, LAYERS, BLOCKS, KV_HEADS, BLOCK, DIM), np.float32)
table = np.zeros((TEXTS, 32), np.int32)  # one for all layers
holders = np.zeros(BLOCKS, np.int32)
lengths, compressions = np.zeros((2, TEXTS), np.int32)
prompts = [list(random.integers(VOCAB, size=20)) for _ in range(TEXTS)]
prompts[1][:BLOCK] = prompts[0][:BLOCK]
texts = [list(prompt) for prompt in prompts]
prompt_lengths = np.array([len(prompt) for prompt in prompts], np.int32)
queries_seen = [[[] for _ in range(TEXTS)] for _ in range(LAYERS)]  # for the checks alone


def new_block() -> int:
    block = int(np.flatnonzero(holders == 0)[0])
    holders[block] = 1
    return block


def rotate(x: np.ndarray, position: int) -> np.ndarray:
    angles = position * 10000.0 ** -(np.arange(DIM // 2) / (DIM // 2))
    cos, sin, (a, b) = np.cos(angles), np.sin(angles), np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(np.float32)


def cached(pages: np.ndarray, row: int, length: int) -> np.ndarray:
    """[KV head][entry][DIM] of a text."""
    blocks = pages[table[row, : math.ceil(length / BLOCK)]]
    return blocks.transpose(1, 0, 2, 3).reshape(KV_HEADS, -1, DIM)[:, :length]


def step(row: int, token: int, position: int) -> int:
    entry = lengths[row]
    if entry % BLOCK == 0:
        table[row, entry // BLOCK] = new_block()
    block, place, x = table[row, entry // BLOCK], entry % BLOCK, embedding[token]
    for layer, w in enumerate(weights):
        normal = x / np.sqrt(np.mean(x * x) + 1e-6)
        q = rotate((normal @ w["q"]).reshape(HEADS, DIM), position)
        keys[layer, block, :, place] = rotate((normal @ w["k"]).reshape(KV_HEADS, DIM), position)
        values[layer, block, :, place] = (normal @ w["v"]).reshape(KV_HEADS, DIM)
        # RPC: the newest queries of each text are remembered, rotated.
        slot, strides = (c_int32 * 1)(row), (c_int64(width), c_int64(DIM))
        call("record", compressor, c_uint32(layer), slot, c_size_t(1), c_void_p(q.ctypes.data), *strides, c_uint32(F32))
        queries_seen[layer][row].append(q)
        logits = np.einsum("kgd,kld->kgl", q.reshape(KV_HEADS, -1, DIM), cached(keys[layer], row, entry + 1)) / math.sqrt(DIM)
        part = np.exp(logits - logits.max(-1, keepdims=True))
        mixed = np.einsum("kgl,kld->kgd", part / part.sum(-1, keepdims=True), cached(values[layer], row, entry + 1))
        x = x + mixed.reshape(width) @ w["o"]
    lengths[row] += 1
    return int(np.argmax(embedding @ x))


# ---- Compression (RPC) ----

options = Options()
call("options_init", byref(options), c_size_t(ctypes.sizeof(options)))
options.heads, options.kv_heads, options.head_dim, options.dtype = HEADS, KV_HEADS, DIM, F32
options.interval, options.window, options.ratio, options.kernel = P, R, C, KERNEL
options.recorded_layers, options.recorded_sequences = LAYERS, TEXTS
compressor = c_void_p()
call("create", byref(options), byref(compressor))


def is_due(row: int) -> bool:
    due = c_uint32()
    call("due", compressor, c_uint64(lengths_ever[row] - prompt_lengths[row]), c_uint64(compressions[row]), byref(due))
    return due.value == 1


def compress(rows: list[int]) -> None:
    index = np.array(rows, np.int32)
    of_batch = [lengths[index], prompt_lengths[index], compressions[index], index]
    shared, spare = (np.flatnonzero(which).astype(np.int32) for which in (holders > 1, holders == 0))
    batch = Batch(
        block_table=table.ctypes.data, block_table_stride=table.shape[1],
        shared_blocks=shared.ctypes.data, shared_count=len(shared), spare_blocks=spare.ctypes.data, spare_count=len(spare),
        sequences=len(rows), row_count=TEXTS, block_entries=BLOCK, block_count=BLOCKS,
    )  # fmt: skip
    batch.lengths, batch.prompt_lengths, batch.compressions, batch.rows = (a.ctypes.data for a in of_batch)
    sizes, plan, window = Sizes(), Plan(), Window(dtype=F32)
    call("get_sizes", compressor, byref(batch), byref(sizes))
    workspace = np.empty(sizes.workspace_bytes, np.uint8)
    strides = (c_int64 * 3)(*(stride // 4 for stride in keys.strides[1:4]))  # block, KV head, entry
    for number in range(LAYERS):
        before = [[cached(pages[number], row, lengths[row]) for pages in (keys, values)] for row in rows]
        layer = Layer(keys=keys[number].ctypes.data, values=values[number].ctypes.data, layer=number)
        layer.key_strides = layer.value_strides = strides
        memory = c_void_p(workspace.ctypes.data), c_size_t(sizes.workspace_bytes)
        call("compress", compressor, byref(layer), byref(batch), byref(window), *memory, byref(plan))
        check(number, rows, before, plan)
    # The block table, lengths and blocks follow the plan, which says the same of them for every layer.
    for copy in plan.copies[: plan.copy_count]:
        table[rows[copy.sequence], copy.index] = copy.to
        holders[copy.to] = 1
    for block in plan.freed_blocks[: plan.freed_count]:
        holders[block] -= 1
    lengths[index] = plan.new_lengths[: len(rows)]
    compressions[index] += 1


def check(layer: int, rows: list[int], before: list, plan) -> None:
    """What was kept is what plain numpy keeps, and lies where it should."""
    start = 0
    for number, row in enumerate(rows):
        old_keys, old_values = before[number]
        prompt, end = prompt_lengths[row], lengths[row] - R
        kept = np.array(plan.kept[start : start + plan.kept_counts[number]])
        start += len(kept)
        newest = np.array(queries_seen[layer][row][-R:], np.float64).reshape(R, KV_HEADS, -1, DIM)
        logits = np.einsum("rkgd,kcd->krgc", newest, old_keys[:, prompt:end]) / math.sqrt(DIM)
        part = np.exp(logits - logits.max(-1, keepdims=True))
        scores = (part / part.sum(-1, keepdims=True)).sum(1).mean((0, 1))
        pooled = np.convolve(scores, np.ones(KERNEL) / KERNEL, "same")
        assert len(kept) == (compressions[row] + 1) * P // C and np.all(np.diff(kept) > 0)
        dropped = np.setdiff1d(np.arange(end - prompt), kept)
        # 1e-5: the library adds up in float32, so that nearly equal scores may change places.
        assert pooled[kept].min() >= pooled[dropped].max() * (1 - 1e-5), (row, layer)
        stays = np.concatenate([np.arange(prompt), prompt + kept, np.arange(end, lengths[row])])
        assert plan.new_lengths[number] == len(stays)
        assert np.array_equal(cached(keys[layer], row, len(stays)), old_keys[:, stays])
        assert np.array_equal(cached(values[layer], row, len(stays)), old_values[:, stays])


# ---- The loop ----

lengths_ever = np.zeros(TEXTS, np.int64)
for time in range(TOKENS + 16 * TEXTS):
    running = [row for row in range(TEXTS) if 16 * row <= time < 16 * row + TOKENS]
    for row in running:
        if lengths_ever[row] == 0:  # prefill; text 1 takes over the block whose text it shares with text 0
            if row == 1:
                table[1, 0], lengths[1] = table[0, 0], BLOCK
                holders[table[0, 0]] += 1
            for position in range(lengths[row], prompt_lengths[row]):
                token = step(row, texts[row][position], position)
            lengths_ever[row] = prompt_lengths[row]
        else:
            token = step(row, texts[row][-1], len(texts[row]) - 1)
            lengths_ever[row] += 1
        texts[row].append(token)
    if due := [row for row in running if is_due(row)]:  # RPC
        compress(due)

assert np.all(compressions == (TOKENS - 1 - R) // P)
assert (holders > 0).sum() == sum(math.ceil(length / BLOCK) for length in lengths) - 1
library.rrpc_compressor_free.argtypes = [c_void_p]
library.rrpc_compressor_free(compressor)
print(f"{TEXTS} texts of {len(texts[0])} tokens, {compressions.sum()} compressions of {LAYERS} layers")
print(f"entries of a layer: {lengths.sum()} instead of {lengths_ever.sum()}; blocks: {(holders > 0).sum()}")
