"""`reasoning-rpc perplexity`: golden models and their golden logits, which say what each prediction should have been."""

import json
import math

import numpy as np
import pytest
from conftest import GOLDEN, fail, find_model, succeed
from safetensors.numpy import load_file
from test_generate import FLAVOURS, NAMES, golden, ids, rpc_options

# What the golden logits themselves are compared with.
NEAR = 1e-4


def perplexity(model, text, *arguments, **options):
    result = succeed(
        "perplexity", "--model", model, "--ids", "-", "--cache-dtype", "fp32", "--output", "json", *arguments,
        input=json.dumps(text), **options,
    )  # fmt: skip
    assert result.stderr == ""
    return json.loads(result.stdout)


def logits_of(name, mode):
    return load_file(GOLDEN / "generation" / name / "logits.safetensors")[f"logits_{mode}"].astype(np.float64)


def log_softmax(logits):
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", ["full", "rpc"])
def test_golden(name, flavour, mode):
    expected = golden(name)
    prompt, tokens = expected["prompt"], expected["results"][mode]["tokens"]
    policy = ["--policy", "none"] if mode == "full" else rpc_options(expected)
    found = perplexity(
        find_model(f"golden/{name}-{flavour}"), prompt + tokens, "--prompt-tokens", len(prompt), *policy
    )
    predicted = log_softmax(logits_of(name, mode))
    nll = -predicted[np.arange(len(tokens)), tokens]
    assert found["nll"] == pytest.approx(nll.tolist(), abs=NEAR)
    assert found["mean"] == pytest.approx(nll.mean(), abs=NEAR)
    assert found["compressions"] == len({c["num_comp"] for c in expected["results"][mode]["compressions"]})
    assert (found["prompt_tokens"], found["max_tokens"]) == (len(prompt), len(prompt) + len(tokens))
    assert "kl" not in found


def test_divergence_from_the_whole_cache():
    """As long as both write the same, both golden logits are of one text."""
    name = "qwen2_p32"
    expected = golden(name)
    results, prompt = expected["results"], expected["prompt"]
    tokens = results["rpc"]["tokens"]
    same = next(i for i, pair in enumerate(zip(tokens, results["full"]["tokens"])) if pair[0] != pair[1])
    model = find_model(f"golden/{name}-cached")
    found = perplexity(
        model, prompt + tokens, "--prompt-tokens", len(prompt), "--against", "none", *rpc_options(expected)
    )
    full, rpc = (log_softmax(logits_of(name, mode)[: same + 1]) for mode in ["full", "rpc"])
    kl = (np.exp(full) * (full - rpc)).sum(axis=-1)
    assert kl.max() > 100 * NEAR, "something was compressed before"
    assert found["kl"][: same + 1] == pytest.approx(kl.tolist(), abs=NEAR)
    assert found["mean_kl"] == pytest.approx(np.mean(found["kl"]))
    alone = perplexity(model, prompt + tokens, "--prompt-tokens", len(prompt), "--policy", "none")
    assert found["full_nll"] == alone["nll"]
    assert found["full_mean"] == alone["mean"]


@pytest.mark.parametrize(
    "policy, queries",
    [(name, None) for name in ["rpc", "snapkv", "streaming", "random", "r-kv", "h2o", "tova"]]
    + [(name, queries) for name in ["lookahead", "lookahead-merge"] for queries in ["stored", "online"]],
)
def test_one_step_or_many(policy, queries):
    """A text read in long steps is the text that generate writes token by token."""
    model, prompt = find_model("golden/qwen2_p32-cached"), list(range(40))
    options = ["--policy", policy, *(["--queries", queries] if queries else []), "--interval", 32, "--window", 8]
    answer = json.loads(
        succeed(
            "generate", "--model", model, "--prompt-ids", ids(prompt), "--max-tokens", 250, "--temperature", 0,
            "--cache-dtype", "fp32", "--seed", 5, "--output", "json", "--ratio", 4, *options,
        ).stdout
    )  # fmt: skip
    # Greedy: each token is the best, so that its probability is at least 1 / 96.
    found = perplexity(model, prompt + answer["tokens"], "--prompt-tokens", 40, "--seed", 5, "--ratio", 4, *options)
    assert max(found["nll"]) <= math.log(96)
    assert found["compressions"] == answer["stats"]["compressions"]
    # rpc's peak is 6 * 8 + 8 + 32; what is more went one by one.
    assert found["compressions"] == (249 - 88 + 1 if policy in ("h2o", "tova") else 7)
    assert found["cache_peak_bytes"] == answer["stats"]["cache_peak_bytes"]
    # What keeps everything is the whole cache.
    ample = perplexity(
        model, prompt + answer["tokens"], "--prompt-tokens", 40, "--against", "none", *options, "--ratio", 1
    )
    assert ample["nll"] == ample["full_nll"]
    assert ample["kl"] == [0] * 250


def test_several_policies_are_each_alone():
    """Those of a list share one whole cache, and h2o and tova their steps: their figures are those of each alone."""
    model, text = find_model("golden/qwen2_p32-cached"), [i * i % 96 for i in range(300)]
    common = ["--prompt-tokens", 40, "--interval", 32, "--window", 8, "--ratio", 4, "--against", "none"]
    labels = ["rpc", "h2o", "lookahead-merge:ratio=8", "random:interval=64", "tova", "none", "h2o:ratio=8"]
    found = perplexity(model, text, *common, "--policies", ",".join(labels))
    assert [one.pop("policy") for one in found["policies"]] == labels
    for label, figures in zip(labels, found["policies"]):
        name, *own = label.split(":")
        options = [word for part in own for word in ("--" + part.split("=")[0], part.split("=")[1])]
        shared = [*common[:2], *common[8:]]
        for place in range(2, 8, 2):
            shared += [] if common[place] in options else common[place : place + 2]
        alone = perplexity(model, text, *shared, *options, "--policy", name)
        assert figures == {key: alone[key] for key in figures}
        assert found["full_nll"] == alone["full_nll"]
    lines = succeed("perplexity", "--model", model, "--ids", "-", *common, "--policies", "rpc,tova", input=json.dumps(text))
    assert lines.stdout.decode().count("from the whole cache") == 2


def test_what_rpc_takes_beyond_the_paper():
    """Each option is another rule, which reads the text otherwise; pooling of one score is none."""
    model, text = find_model("golden/qwen2_p32-cached"), [i * i % 96 for i in range(240)]
    common = ["--policy", "rpc", "--prompt-tokens", 40, "--interval", 32, "--window", 8, "--ratio", 4]
    variants = [
        [], ["--pooling", "none"], ["--softmax", "all"], ["--history", 0.5], ["--value-norms", "yes"],
        ["--redundancy", 0.5],
    ]  # fmt: skip
    found = [perplexity(model, text, *common, *options)["nll"] for options in variants]
    assert all(one != other for i, one in enumerate(found) for other in found[:i])
    assert perplexity(model, text, *common, "--kernel", 1)["nll"] == found[1]


def test_a_text_file(text_model, tmp_path):
    text = "a text, read as if the model had written it. " * 4
    (tmp_path / "text").write_text(text)
    tokens = json.loads(succeed("tokenize", "--model", text_model, "--text", text).stdout)
    (tmp_path / "ids").write_text(json.dumps(tokens))
    common = ["perplexity", "--model", text_model, "--prompt-tokens", 9, "--max-tokens", 100]
    by_text = succeed(*common, "--text", tmp_path / "text", "--output", "json").stdout
    by_ids = succeed(*common, "--ids", tmp_path / "ids", "--output", "json").stdout
    assert by_text == by_ids
    assert len(json.loads(by_ids)["nll"]) == 91
    lines = succeed(*common, "--ids", tmp_path / "ids", "--against", "none").stdout.decode()
    assert "91 predicted" in lines and "whole cache" in lines and "0 compressions" in lines


def test_errors(tiny, tmp_path):
    (tmp_path / "ids").write_text("[1, 2, 3]")
    (tmp_path / "words").write_text("[1, two]")
    ids_of = ["--ids", tmp_path / "ids"]
    for arguments, expected in [
        ([], ["--text or --ids", "found neither"]),
        ([*ids_of, "--text", tmp_path / "ids"], ["one of --text and --ids", "found both"]),
        (["--ids", tmp_path / "words"], ["--ids: expected token ids", '"two"']),
        ([*ids_of, "--against", "rpc"], ["--against: expected none", '"rpc"']),
        ([*ids_of, "--prompt-tokens", 0], ["--prompt-tokens: expected a whole number, 1 or more"]),
        ([*ids_of, "--temperature", 1], ["found --temperature"]),
        ([*ids_of, "--policy", "rpc", "--policies", "rpc,tova"], ["one of --policy and --policies", "found both"]),
    ]:
        fail(2, "perplexity", "--model", tiny, *arguments, expected=expected)
    fail(1, "perplexity", "--model", tiny, *ids_of, "--prompt-tokens", 3, expected=["more tokens than --prompt-tokens 3", "found 3"])
    fail(1, "perplexity", "--model", tiny, "--ids", tmp_path / "none", expected=["none"])
    (tmp_path / "ids").write_text("[1, 2, 96]")
    fail(1, "perplexity", "--model", tiny, *ids_of, "--prompt-tokens", 1, expected=["token id: expected 0 to 95, found 96"])
