"""`reasoning-rpc generate --output json` and `inspect` on tiny models with known answers."""

import json

import pytest
from conftest import GOLDEN, find_model, generate, inspect

NAMES = ["qwen2_p32", "llama_p48_c8", "qwen2_group_p64_c2"]
FLAVOURS = ["cached", "portable"]
STATS = {
    "prefill_tokens", "prefill_seconds", "prefill_tokens_per_second",
    "decode_tokens", "decode_seconds", "decode_tokens_per_second",
    "compressions", "compaction_seconds",
    "cache_bytes", "cache_peak_bytes", "cache_uncompressed_bytes",
    "seed", "simd",
}  # fmt: skip
GREEDY = ["--temperature", 0, "--cache-dtype", "fp32"]
AGGREGATION = {"all": "layer", "group": "kv_head"}
POOLING = {"avgpool": "avg", "maxpool": "max"}


def golden(name):
    return json.loads((GOLDEN / "generation" / name / "expected.json").read_text())


def ids(values):
    return ",".join(map(str, values))


def rpc_options(expected):
    return [
        "--policy", "rpc", "--interval", expected["P"], "--window", expected["R"], "--ratio", expected["c"],
        "--aggregation", AGGREGATION[expected["aggregation"]],
        "--pooling", POOLING[expected["pooling"]], "--kernel", expected["kernel_size"],
    ]  # fmt: skip


def text_positions(compressions, prompt, interval, window):
    """Golden kept sets, which count candidates, as positions in the text: candidates are what was kept before, then
    what has left the window since."""
    past = {}
    for record in compressions:
        window_start = prompt + (record["num_comp"] + 1) * interval
        kept = []
        for index, chosen in enumerate(record["kept"]):
            before, fresh = past.get((record["layer"], index), ([], prompt))
            candidates = [*before, *range(fresh, window_start)]
            positions = [candidates[i] for i in chosen]
            past[record["layer"], index] = (positions, window_start)
            kept.append(positions)
        yield {
            "at_token": (record["num_comp"] + 1) * interval + window,
            "layer": record["layer"],
            "len_before": record["cache_len_before"],
            "len_after": record["cache_len_after"],
            "kept": kept,
        }


def blocks(entries):
    return -(-entries // 64)


def walk_peak(prompt, tokens, interval=None, window=None, ratio=None, kept=None):
    """The most entries of a layer, counted one token at a time."""
    entries = peak = prompt
    done = 0
    for written in range(1, tokens):
        entries += 1
        peak = max(peak, entries)
        if interval and written >= interval + window and (written - window) % interval == 0:
            after = prompt + window + (kept or (written - window) // ratio)
            # Of a fixed number, one that would drop nothing is left out; a ratio of 1 drops nothing and counts.
            if ratio or entries > after:
                done += 1
                entries = after
    return peak, done


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", ["full", "rpc"])
def test_golden(name, flavour, mode):
    expected = golden(name)
    result = expected["results"][mode]
    policy = ["--policy", "none"] if mode == "full" else rpc_options(expected)
    prompt = expected["prompt"]
    answer = generate(
        find_model(f"golden/{name}-{flavour}"),
        "--prompt-ids", ids(prompt), "--max-tokens", len(result["tokens"]), *GREEDY, *policy,
    )  # fmt: skip
    assert list(answer) == ["prompt_ids", "tokens", "text", "stop_reason", "compressions", "stats"]
    assert answer["prompt_ids"] == prompt
    assert answer["tokens"] == result["tokens"]
    assert answer["text"] == ""
    assert answer["stop_reason"] == "length"
    positions = text_positions(result["compressions"], len(prompt), expected["P"], expected["R"])
    assert answer["compressions"] == list(positions)

    stats = answer["stats"]
    assert STATS == set(stats)
    assert stats["prefill_tokens"] == len(prompt)
    assert stats["decode_tokens"] == len(result["tokens"]) - 1, "the last token is never written"
    assert stats["compressions"] == len({c["at_token"] for c in answer["compressions"]})
    assert (stats["compaction_seconds"] > 0) == (mode == "rpc")
    for kind in ["prefill", "decode"]:
        rate = stats[f"{kind}_tokens"] / stats[f"{kind}_seconds"]
        assert stats[f"{kind}_tokens_per_second"] == pytest.approx(rate)


@pytest.mark.parametrize("simd", ["portable", "avx2", "avx512"])
def test_every_simd_path_writes_the_same(simd):
    flags = open("/proc/cpuinfo").read()
    if {"avx2": "avx2", "avx512": "avx512vl"}.get(simd, "") not in flags:
        pytest.skip(f"not run: this CPU lacks {simd}")
    expected = golden("qwen2_p32")
    answer = generate(
        find_model("golden/qwen2_p32-cached"),
        "--prompt-ids", ids(expected["prompt"]), "--max-tokens", 300, *GREEDY, *rpc_options(expected),
        env={"RRPC_SIMD": simd},
    )  # fmt: skip
    assert answer["stats"]["simd"] == simd
    assert answer["tokens"] == expected["results"]["rpc"]["tokens"]


def test_ids_from_standard_input(tiny):
    arguments = ["--temperature", 0, "--max-tokens", 5]
    answers = [
        generate(tiny, "--prompt-ids", "7,9,83", *arguments),
        generate(tiny, "--prompt-ids", "-", *arguments, input="[7, 9, 83]\n"),
    ]
    assert answers[0]["tokens"] == answers[1]["tokens"]
    assert answers[1]["prompt_ids"] == [7, 9, 83]


def test_an_interval_beyond_the_context_never_compresses(tiny):
    options = ["--prompt-ids", "7,9,83", "--temperature", 0, "--max-tokens", 20]
    answers = [
        generate(tiny, *options, "--policy", "none"),
        generate(tiny, *options, "--interval", 2**32 - 4, "--window", 2**32 - 5),
    ]
    assert answers[0]["tokens"] == answers[1]["tokens"]
    assert answers[1]["compressions"] == []


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_context_ends_an_answer(flavour):
    model = find_model(f"golden/qwen2_p32-{flavour}")
    options = ["--prompt-ids", "1,2,3", "--interval", 512, "--temperature", 0]
    room = inspect(model)["context"] - 3
    cases = [([], "context"), (["--max-tokens", room + 1], "context"), (["--max-tokens", room], "length")]
    answers = [generate(model, *options, *limit) for limit, _ in cases]
    for answer, (_, reason) in zip(answers, cases):
        assert answer["stop_reason"] == reason
        assert len(answer["tokens"]) == room
        assert answer["tokens"] == answers[0]["tokens"]
        assert answer["stats"]["decode_tokens"] == room - 1


@pytest.mark.parametrize(
    "flavour, dtype, prompt, tokens, interval, window, ratio",
    [
        ("cached", "fp32", 20, 4000, 1024, 32, 4),
        ("cached", "fp16", 20, 4000, 1024, 32, 4),
        ("portable", "fp32", 20, 4000, 1024, 32, 4),
        ("cached", "fp16", 1, 1, 1024, 32, 4),
        ("cached", "fp16", 7, 297, 32, 8, 4),  # ends at the moment of a compression
        ("cached", "fp16", 7, 298, 32, 8, 1),  # nothing is ever dropped
        ("cached", "fp16", 300, 900, 64, 63, 64),
        ("portable", "fp32", 300, 900, 48, 8, 8),
        ("cached", "bf16", 7, 297, 32, 8, 4),
        ("cached", "int8", 7, 297, 32, 8, 4),
        ("cached", "int8", 20, 4000, 1024, 32, 4),
    ],
)
def test_the_peak_is_what_inspect_says(flavour, dtype, prompt, tokens, interval, window, ratio):
    model = find_model(f"golden/llama_p48_c8-{flavour}")
    shape = ["--interval", interval, "--window", window, "--ratio", ratio, "--cache-dtype", dtype]
    found = inspect(model, "--policy", "rpc", "--prompt-tokens", prompt, "--max-tokens", tokens, *shape)
    # 3 layers, 2 KV heads of 16; keys, values, with int8 a scale of 4 bytes for each, and a position of 4 bytes.
    vector = {"fp32": 4 * 16, "fp16": 2 * 16, "bf16": 2 * 16, "int8": 16 + 4}[dtype]
    assert found["cache"]["dtype"] == dtype
    assert found["cache"]["kv_bytes_per_token"] == 6 * 2 * vector
    assert found["cache"]["bytes_per_token"] == 6 * (2 * vector + 4)
    assert found["cache"]["block_entries"] == 64
    assert found["cache"]["growth_bytes"] == 6 * found["cache"]["block_bytes"]

    prompt_ids = ids(n % 90 for n in range(prompt))
    common = ["--prompt-ids", prompt_ids, "--max-tokens", tokens, "--temperature", 0, *shape]
    for policy, name, steps in [("rpc", "peak_compressed", (interval, window, ratio)), ("none", "peak_uncompressed", ())]:
        peak, compressions = walk_peak(prompt, tokens, *steps)
        planned = found["answer"][name]
        assert planned["entries"] == peak
        assert planned["bytes"] == 6 * blocks(peak) * 64 * (2 * vector + 4)
        stats = generate(model, "--policy", policy, *common)["stats"]
        assert stats["cache_peak_bytes"] == planned["bytes"]
        uncompressed = 6 * blocks(prompt + tokens - 1) * 64 * (2 * vector + 4)
        assert stats["cache_uncompressed_bytes"] == uncompressed
        assert stats["compressions"] == compressions
        if policy == "rpc":
            assert found["answer"]["compressions"] == compressions
        # The budget is exact: the peak suffices and a byte less does not (see test_errors.py).
        generate(model, "--policy", policy, *common, "--budget", planned["bytes"])


@pytest.mark.parametrize("kept", [1, 40, 64, 200])
def test_a_fixed_number_of_entries_bounds_the_cache(kept):
    model = find_model("golden/llama_p48_c8-cached")
    prompt, tokens, interval, window = 20, 1500, 64, 8
    schedule = ["--policy", "rpc", "--interval", interval, "--window", window]
    found = inspect(model, "--prompt-tokens", prompt, "--max-tokens", tokens, *schedule, "--entries", kept)["answer"]
    peak, compressions = walk_peak(prompt, tokens, interval, window, kept=kept)
    assert (found["ratio"], found["entries"], found["compressions"]) == (None, kept, compressions)
    assert found["peak_compressed"]["entries"] == peak == prompt + kept + window + interval

    common = ["--prompt-ids", ids(range(prompt)), "--max-tokens", tokens, "--temperature", 0, *schedule]
    answer = generate(model, *common, "--entries", kept)
    assert answer["stats"]["cache_peak_bytes"] == found["peak_compressed"]["bytes"]
    assert len(answer["compressions"]) == 3 * compressions
    assert {c["len_after"] for c in answer["compressions"]} == {prompt + kept + window}

    # As many bytes as these entries take in whole blocks, or a little more.
    size = 6 * 64 * (2 * 16 * 2 + 4)
    whole = blocks(kept + window + interval) * 64 - window - interval
    for more in [0, size - 1]:
        bytes_ = blocks(kept + window + interval) * size + more
        assert generate(model, *common, "--bytes", bytes_)["tokens"] == generate(model, *common, "--entries", whole)["tokens"]


@pytest.mark.parametrize(
    "policy, queries_, tokens, moments, floats",
    [
        ("rpc", None, 8, 0, 0),
        ("streaming", None, 0, 0, 0),
        ("lookahead", "stored", 64, 0, 1),
        ("lookahead", "online", 0, 0, 2),
        ("lookahead-merge", "online", 64, 16 * 17, 2),
    ],
)
def test_what_is_remembered_beside_the_cache_is_told(policy, queries_, tokens, moments, floats):
    model = find_model("golden/llama_p48_c8-cached")
    ahead = ["--queries", queries_, "--aggregation", "kv_head"] if queries_ else []
    policy_ = ["--policy", policy, *ahead, "--interval", 64, "--window", 8]
    options = [*policy_, "--prompt-tokens", 20, "--max-tokens", 1000]
    found = inspect(model, *options)["answer"]
    assert found["policy"] == policy
    # 3 layers of 4 query and 2 KV heads of 16 elements.
    queries = 3 * (tokens * 4 * 16 + 2 * moments) * 4
    if (policy, queries_) == ("lookahead", "stored"):
        # Of the peak, in blocks of 64 entries of 6 heads.
        block = 64 * (2 * 16 * 2 + 4)
        stored = -(-queries // 2 // block) * block  # Of fp16, as the cache.
        assert (found["query_bytes"], found["stored_query_bytes"]) == (0, stored)
        entries = -(-found["peak_compressed"]["entries"] // 64)
        assert found["peak_compressed"]["bytes"] == entries * 6 * block + stored
        answer = generate(model, "--prompt-ids", ids(range(20)), "--max-tokens", 1000, "--temperature", 0, *policy_)
        assert answer["stats"]["cache_peak_bytes"] == found["peak_compressed"]["bytes"]
    else:
        assert (found["query_bytes"], found["stored_query_bytes"]) == (queries, 0)
    assert found["history_bytes"] == floats * 6 * found["peak_compressed"]["entries"] * 4
    assert found["compressions"] == 15
    never = inspect(model, *options[:2], "--interval", 4096)["answer"]
    assert all(never[key] == 0 for key in ["query_bytes", "stored_query_bytes", "history_bytes", "compressions"])


@pytest.mark.parametrize(
    "flavour, explicit",
    [
        ("cached", ["--policy", "lookahead-merge", "--aggregation", "adaptive", "--queries", "stored", "--history", 0.6, "--similarity", "logits"]),
        ("portable", ["--policy", "rpc", "--aggregation", "layer"]),
    ],
)
def test_the_default_policy_is_one_that_the_model_can_run(flavour, explicit):
    model = find_model(f"golden/llama_p48_c8-{flavour}")
    schedule = ["--interval", 64, "--window", 8]
    common = ["--prompt-ids", ids(range(20)), "--max-tokens", 400, "--temperature", 0, "--cache-dtype", "fp32", *schedule]
    found, expected = generate(model, *common), generate(model, *common, *explicit)
    assert found["tokens"] == expected["tokens"] and found["compressions"] == expected["compressions"] != []
    other = ["--policy", "lookahead-merge" if flavour == "cached" else "rpc", "--aggregation", "kv_head"]
    assert generate(model, *common, *other)["compressions"] != found["compressions"]
    assert inspect(model, *schedule, "--max-tokens", 400)["answer"]["policy"] == explicit[1]
