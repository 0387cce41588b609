"""`reasoning-rpc analyze`, against entropies and redundancies counted here, from texts and from what `generate` says was kept."""

import json
import math
import os
import random
from collections import Counter

import pytest
from conftest import END, fail, find_model, generate, succeed

OPTIONS = ["--interval", 32, "--window", 8, "--ratio", 4]


def analyze(*arguments, **options):
    result = succeed("analyze", "--output", "json", *arguments, **options)
    assert result.stderr == ""
    return json.loads(result.stdout)


def runs(positions, n):
    kept = set(positions)
    return [range(p, p + n) for p in positions if all(p + i in kept for i in range(n))]


def entropy(tokens, n):
    counts = Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
    total = sum(counts.values())
    return -sum(c / total * math.log2(c / total) for c in counts.values())


def redundancy(tokens, positions, n):
    grams = [tuple(tokens[i] for i in run) for run in runs(positions, n)]
    return 1 - len(set(grams)) / len(grams) if grams else None


def mean(values):
    values = [value for value in values if value is not None]
    return sum(values) / len(values) if values else None


def near(found, expected):
    assert (found is None) == (expected is None)
    assert found is None or found == pytest.approx(expected, abs=1e-12)


def test_texts_side_by_side(tmp_path):
    seed = int(os.environ.get("SEED") or random.randrange(1 << 32))
    print("SEED", seed)
    draw = random.Random(seed)
    texts = {"plain": [draw.randrange(40) for _ in range(500)], "again": [draw.randrange(5) for _ in range(60)] * 5}
    arguments = []
    for name, tokens in texts.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(tokens))
        arguments += ["--ids", tmp_path / f"{name}.json"]
    for most, cut in [([], 500), (["--max-tokens", 77], 77)]:
        found = analyze(*arguments, *most)
        assert [text["name"] for text in found["texts"]] == list(texts) and found["kept"] == []
        for text, tokens in zip(found["texts"], texts.values()):
            tokens = tokens[:cut]
            assert (text["tokens"], text["distinct"]) == (len(tokens), len(set(tokens)))
            assert text["entropy"] == pytest.approx([entropy(tokens, n) for n in (1, 2, 3)], abs=1e-9)
            assert text["redundancy"] == pytest.approx([redundancy(tokens, range(len(tokens)), n) for n in (1, 2, 4)])


@pytest.mark.parametrize(
    "policy, aggregation", [("rpc", "layer"), ("rpc", "kv_head"), ("lookahead-merge", "adaptive")]
)
def test_what_a_policy_kept(policy, aggregation, tmp_path):
    model, prompt = find_model("golden/qwen2_p32-cached"), list(range(20))
    options = ["--policy", policy, "--aggregation", aggregation, *OPTIONS]
    answer = generate(
        model, "--prompt-ids", ",".join(map(str, prompt)), "--max-tokens", 200, "--temperature", 0, "--ignore-eos",
        "--cache-dtype", "fp32", *options,
    )  # fmt: skip
    (tmp_path / "trace.json").write_text(json.dumps(answer))
    (tmp_path / "ids.json").write_text(json.dumps(prompt + answer["tokens"]))
    traced = analyze("--trace", tmp_path / "trace.json")["kept"][0]["moments"]
    # The model reads the text and keeps the same.
    read = analyze(
        "--ids", tmp_path / "ids.json", "--model", model, "--prompt-tokens", 20, "--cache-dtype", "fp32", *options[2:],
        "--policies", policy,
    )  # fmt: skip
    assert read["kept"][0]["moments"] == traced
    tokens = prompt + answer["tokens"]
    left = {}
    for index, moment in enumerate(traced):
        at = 32 * (index + 1) + 8
        assert moment["at_token"] == at
        here = [c for c in answer["compressions"] if c["at_token"] == at]
        before, after = [], []
        for c in here:
            for head, kept in enumerate(c["kept"]):
                new = range(20 + 32 * index, 20 + 32 * (index + 1))
                before.append(left.get((c["layer"], head), []) + list(new))
                after.append(kept)
                left[c["layer"], head] = kept
        for i, n in enumerate((1, 2, 4)):
            near(moment["text"][i], redundancy(tokens, range(20, 20 + at - 8), n))
            near(moment["candidates"][i], mean(redundancy(tokens, b, n) for b in before))
            near(moment["kept"][i], mean(redundancy(tokens, a, n) for a in after))
    assert len(traced) == 5
    lengths = {tuple(map(len, c["kept"])) for c in answer["compressions"]}
    assert (aggregation == "adaptive") == any(len(set(of)) > 1 for of in lengths)


def test_text_files_and_pages(text_model, tmp_path):
    (tmp_path / "story.txt").write_text("the same, and the same again. " * 12)
    page = tmp_path / "page.html"
    shown = succeed(
        "analyze", "--model", text_model, "--text", tmp_path / "story.txt", "--policies", "rpc,random:ratio=8", *OPTIONS,
        "--prompt-tokens", 9, "--html", page,
    ).stdout.decode()  # fmt: skip
    assert "| story | 360 |" in shown and "| story, random:ratio=8 | 10 |" in shown
    html = page.read_text()
    assert html.count("<svg") == 9 and "src=" not in html and "href=" not in html and "NaN" not in html


def test_errors(text_model, tmp_path):
    (tmp_path / "ids").write_text("[1, 2, 3]")
    (tmp_path / "empty.json").write_text("{}")
    ids = ["--ids", tmp_path / "ids"]
    for arguments, expected in [
        ([], ["--text, --ids or --trace", "none"]),
        (["--text", tmp_path / "ids"], ["--model DIR", "none"]),
        ([*ids, "--policies", "rpc"], ["--model DIR", "none"]),
        (["--trace", tmp_path / "empty.json", "--policies", "rpc"], ["--text or --ids", "--trace alone"]),
        ([*ids, "--max-tokens", 0], ["--max-tokens", "1 or more"]),
    ]:
        fail(2, "analyze", *arguments, expected=expected)
    fail(1, "analyze", "--trace", tmp_path / "empty.json", expected=["generate --output json", "prompt_ids"])
    fail(1, "analyze", *ids, "--model", text_model, "--policies", "rpc", expected=["64 of a prompt", "found 3"])
    (tmp_path / "ids").write_text(json.dumps([1, END + 50, 2]))
    fail(1, "analyze", *ids, "--model", text_model, "--policies", "rpc", "--prompt-tokens", 1, expected=["token id"])
