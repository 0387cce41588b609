"""rrpc_compressor_plan, _apply and _compress with lookahead and lookahead-merge, in a host's pages, against the
formulas in float64: two compressions, so that histories are written, moved and read.

SEED replays a run. The library: target/release/libreasoning_rpc.so, or RRPC_LIBRARY.
"""

import os
import secrets
from ctypes import byref, c_size_t, c_void_p, sizeof

import numpy as np
import pytest
from compressor_run import CompressorOptions, KvBatch, KvLayer, Plan, QueryWindow, Sizes, calls, strides_of
from rrpc import Error, Library

LOOKAHEAD, LOOKAHEAD_MERGE = 7, 8
KEPT_COUNT, INVALID_ARGUMENT, NULL_POINTER = 24, 1, 2
HEADS, KV_HEADS, DIM, ROTARY = 6, 2, 32, 24
INTERVAL, WINDOW, RATIO, PROMPT, BLOCK = 96, 8, 4, 21, 16
GROUP = HEADS // KV_HEADS
FREQUENCIES = (10000.0 ** (-np.arange(0, ROTARY, 2) / ROTARY)).astype(np.float32)


@pytest.fixture
def random() -> np.random.Generator:
    seed = int(os.environ.get("SEED", secrets.randbits(32)))
    print(f"SEED={seed}")
    return np.random.default_rng(seed)


def options_for(call, policy: int, style: int = 0) -> CompressorOptions:
    options = CompressorOptions()
    call("options_init", byref(options), c_size_t(sizeof(options)))
    options.heads, options.kv_heads, options.head_dim, options.dtype = HEADS, KV_HEADS, DIM, 1
    options.policy, options.interval, options.window, options.ratio = policy, INTERVAL, WINDOW, RATIO
    options.inv_freq, options.rotary_dim, options.rope_style = FREQUENCIES.ctypes.data, ROTARY, style
    return options


class Host:
    """One sequence in blocks of `[KV head][entry]`, of which some are shared."""

    def __init__(self, random: np.random.Generator) -> None:
        blocks = 40
        self.keys, self.values = (random.standard_normal((blocks, KV_HEADS, BLOCK, DIM), np.float32) for _ in "kv")
        self.history = np.zeros((blocks, KV_HEADS, BLOCK), np.float32)
        ids = random.permutation(blocks).astype(np.int32)
        self.table, self.spare = ids[:16].copy(), ids[16:32].copy()
        self.shared = self.table[:3].copy()
        self.length, self.done = np.array([PROMPT + INTERVAL + WINDOW], np.int32), np.array([0], np.int32)
        self.prompt = np.array([PROMPT], np.int32)

    def layer(self) -> KvLayer:
        layer = KvLayer()
        layer.keys, layer.values, layer.history = (
            array.ctypes.data for array in (self.keys, self.values, self.history)
        )
        layer.key_strides = layer.value_strides = strides_of(self.keys, (0, 1, 2))
        layer.history_strides = strides_of(self.history, (0, 1, 2))
        return layer

    def batch(self) -> KvBatch:
        batch = KvBatch()
        batch.lengths, batch.prompt_lengths = self.length.ctypes.data, self.prompt.ctypes.data
        batch.compressions, batch.block_table = self.done.ctypes.data, self.table.ctypes.data
        batch.block_table_stride = len(self.table)
        batch.shared_blocks, batch.shared_count = self.shared.ctypes.data, len(self.shared)
        batch.spare_blocks, batch.spare_count = self.spare.ctypes.data, len(self.spare)
        batch.sequences = batch.row_count = 1
        batch.block_entries, batch.block_count = BLOCK, len(self.keys)
        return batch

    def entries(self, part: np.ndarray, length: int) -> np.ndarray:
        """`[KV head][entry]...`, as float64."""
        return np.concatenate(part[self.table], axis=1)[:, :length].astype(np.float64)


def rotated_on(queries: np.ndarray, style: int) -> np.ndarray:
    out = queries.astype(np.float64)
    angles = INTERVAL * FREQUENCIES.astype(np.float64)
    a, b = (slice(0, ROTARY // 2), slice(ROTARY // 2, ROTARY)) if style == 0 else (slice(0, ROTARY, 2), slice(1, ROTARY, 2))
    x, y = out[..., a].copy(), out[..., b].copy()
    out[..., a], out[..., b] = x * np.cos(angles) - y * np.sin(angles), x * np.sin(angles) + y * np.cos(angles)
    return out


def compressed(keys, values, history, queries, kept, merges: bool):
    """What one KV head's candidates that stay become, and all scores, by the definition."""
    count = len(keys)
    candidates = slice(PROMPT, count - WINDOW)
    logits = queries @ keys.T / np.sqrt(DIM)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    attention = (weights / weights.sum(axis=1, keepdims=True)).mean(axis=0)
    scores = attention[candidates] + 0.6 * history[candidates]
    k, v = keys[candidates].copy(), values[candidates].copy()
    mass = scores.copy()
    if merges:
        scaled = queries / np.sqrt(DIM)
        mu, moments = scaled.mean(axis=0), scaled.T @ scaled / len(scaled)
        u = np.linalg.solve(moments + 0.1 * np.trace(moments) / DIM * np.eye(DIM), mu)
        dropped = np.setdiff1d(np.arange(len(scores)), kept)
        # Into the kept one whose logits differ by the least variance.
        covariance = np.cov(scaled.T, bias=True)
        covariance += 0.1 * np.trace(covariance) / DIM * np.eye(DIM)
        apart = k[dropped, None] - k[None, kept]
        into = kept[np.argmin(np.einsum("jkd,de,jke->jk", apart, covariance, apart), axis=1)]
        np.add.at(mass, into, scores[dropped])
        sums = scores[:, None] * v
        np.add.at(sums, into, scores[dropped, None] * v[dropped])
        for i in np.unique(into):
            v[i] = sums[i] / mass[i]
            k[i] += min(3.0, np.log(mass[i] / scores[i])) * u / (mu @ u)
    return scores, k[kept], v[kept], mass[kept]


@pytest.mark.parametrize("style", [0, 1])
@pytest.mark.parametrize("policy", [LOOKAHEAD, LOOKAHEAD_MERGE])
@pytest.mark.parametrize("at_once", [True, False])
def test_compressions(policy: int, style: int, at_once: bool, random: np.random.Generator) -> None:
    library, compressor = Library(), c_void_p()
    call = calls(library)
    call("create", byref(options_for(call, policy, style)), byref(compressor))
    host = Host(random)
    for done in range(2):
        length = int(host.length[0])
        queries = random.standard_normal((INTERVAL, HEADS, DIM), np.float32)
        window = QueryWindow()
        window.queries, window.strides = queries.ctypes.data, strides_of(queries[None], (0, 1, 2))
        window.ring_tokens, window.dtype = INTERVAL, 1
        before = [host.entries(part, length) for part in (host.keys, host.values, host.history)]
        held = [part[host.shared].copy() for part in (host.keys, host.values, host.history)]
        layer, batch, sizes, plan = host.layer(), host.batch(), Sizes(), Plan()
        call("get_sizes", compressor, byref(batch), byref(sizes))
        workspace = np.empty(sizes.workspace_bytes, np.uint8)
        work = c_void_p(workspace.ctypes.data), c_size_t(workspace.nbytes)
        given = compressor, byref(layer), byref(batch)
        if at_once:
            call("compress", *given, byref(window), *work, byref(plan))
        else:
            call("plan", *given, byref(window), *work, byref(plan))
            assert np.array_equal(host.entries(host.keys, length), before[0])
            call("apply", *given, byref(plan), *work)
        count = KEPT_COUNT * (done + 1)
        after = length - INTERVAL - done * KEPT_COUNT + count
        assert (plan.sets, plan.kept_counts[0], plan.new_lengths[0]) == (KV_HEADS, count, after)
        # Shared blocks are left alone, and copied where they were in the way.
        for part, old in zip((host.keys, host.values, host.history), held, strict=True):
            assert np.array_equal(part[host.shared], old)
        copies = np.ctypeslib.as_array(
            (np.ctypeslib.ctypes.c_int32 * (4 * plan.copy_count)).from_address(plan.copies)
        ).reshape(-1, 4) if plan.copy_count else np.zeros((0, 4), np.int32)
        assert len(copies) == (2 if done == 0 else 0)
        for _, index, _, to in copies:
            host.table[index] = to
        host.spare = host.spare[len(copies) :].copy()
        host.shared = host.shared[:1].copy()
        kept = np.array(plan.kept[: plan.kept_len]).reshape(KV_HEADS, count)
        found = [host.entries(part, after) for part in (host.keys, host.values, host.history)]
        for head in range(KV_HEADS):
            asked = rotated_on(queries[:, head * GROUP : (head + 1) * GROUP].reshape(-1, DIM), style)
            scores, *expected = compressed(
                *(part[head] for part in before), asked, kept[head], policy == LOOKAHEAD_MERGE
            )
            # float32 may swap what is as good as equal.
            assert scores[kept[head]].min() >= np.sort(scores)[-count] - 1e-7
            for part, old, new in zip(found, before, expected, strict=True):
                np.testing.assert_allclose(part[head, PROMPT : PROMPT + count], new, rtol=1e-4, atol=1e-4)
                assert np.array_equal(part[head, :PROMPT], old[head, :PROMPT])
                assert np.array_equal(part[head, PROMPT + count :], old[head, -WINDOW:])
            assert np.allclose(found[2][head, PROMPT : PROMPT + count], expected[2], rtol=1e-4, atol=0)
        assert (plan.merge_count > 0) == (policy == LOOKAHEAD_MERGE)
        # The next interval.
        host.length[0], host.done[0] = after + INTERVAL, done + 1
    library.dll.rrpc_compressor_free(compressor)


def test_what_is_missing_is_named() -> None:
    library, compressor = Library(), c_void_p()
    call = calls(library)

    def refused(code: int, words: str, *arguments) -> None:
        with pytest.raises(Error, match=words) as raised:
            call(*arguments)
        assert raised.value.code == code

    for name, value, code, words in [
        ("inv_freq", None, NULL_POINTER, "inv_freq"),
        ("rotary_dim", 7, INVALID_ARGUMENT, "an even number up to head_dim 32, found 7"),
        ("rotary_dim", 34, INVALID_ARGUMENT, "found 34"),
        ("rope_style", 2, INVALID_ARGUMENT, "rope_style: expected one of 0, 1, found 2"),
    ]:
        options = options_for(call, LOOKAHEAD)
        setattr(options, name, value)
        refused(code, words, "create", byref(options), byref(compressor))
    # A program whose header is older has no such fields.
    options = options_for(call, LOOKAHEAD)
    options.struct_size = CompressorOptions.inv_freq.offset
    refused(NULL_POINTER, "inv_freq", "create", byref(options), byref(compressor))

    call("create", byref(options_for(call, LOOKAHEAD)), byref(compressor))
    host = Host(np.random.default_rng(1))
    queries = np.zeros((INTERVAL, HEADS, DIM), np.float32)
    window = QueryWindow()
    window.queries, window.strides = queries.ctypes.data, strides_of(queries[None], (0, 1, 2))
    window.ring_tokens, window.dtype = INTERVAL, 1
    layer, batch, sizes, plan = host.layer(), host.batch(), Sizes(), Plan()
    call("get_sizes", compressor, byref(batch), byref(sizes))
    workspace = np.empty(sizes.workspace_bytes, np.uint8)
    work = c_void_p(workspace.ctypes.data), c_size_t(workspace.nbytes)
    given = compressor, byref(layer), byref(batch), byref(window)
    layer.struct_size = KvLayer.history.offset
    refused(INVALID_ARGUMENT, "history: expected a float for each entry", "plan", *given, *work, byref(plan))
    layer.struct_size = sizeof(KvLayer)
    window.ring_tokens = INTERVAL - 1
    refused(INVALID_ARGUMENT, "ring_tokens: expected at least 96", "compress", *given, *work, byref(plan))
    scores = np.zeros(sizes.score_count, np.float32)
    select = compressor, 0, byref(batch), c_void_p(scores.ctypes.data), c_size_t(len(scores))
    refused(INVALID_ARGUMENT, "lookahead: plan or compress", "select", *select, *work, byref(plan))
    library.dll.rrpc_compressor_free(compressor)
