"""The policy `lightthinker` in the program; what it computes is tested in tests/abi/test_lightthinker.py."""

import json

import numpy as np
import pytest
from conftest import GOLDEN, fail, find_model, generate, succeed
from decoder import logits_of, visible

EXPECTED = json.loads((GOLDEN / "generation" / "llama_p48_c8" / "expected.json").read_text())
MODEL = "golden/llama_p48_c8-cached"
# Every fifth id ends a thought.
DELIMITERS = ",".join(str(token) for token in range(5, 96, 5))
OPTIONS = ["--policy", "lightthinker", "--delimiters", DELIMITERS, "--gists", "1,2", "--resume", 3]


def test_thoughts_end_and_gists_are_counted_and_not_shown():
    prompt = ["--prompt-ids", ",".join(map(str, EXPECTED["prompt"])), "--temperature", 0, "--cache-dtype", "fp32"]
    found = generate(find_model(MODEL), *prompt, "--max-tokens", 120, *OPTIONS)
    tokens = found["tokens"]
    ends = sum(token > 0 and token % 5 == 0 for token in tokens)
    assert ends > 3
    # The last token is one of the 120, or what follows it goes beyond them.
    assert 120 <= len(tokens) + 3 * ends <= 123
    assert found["stats"]["compressions"] in (ends, ends - 1)
    assert found["stats"]["cache_peak_bytes"] <= found["stats"]["cache_uncompressed_bytes"]


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--gists", "1"], "expected --delimiters IDS, found none"),
        (["--delimiters", "5"], "expected --gists IDS, found none"),
        (["--delimiters", "5", "--gists", "5"], "gists: expected ids that are no delimiters, found 5"),
        (["--delimiters", "5", "--gists", "x"], "--gists: expected token ids such as 1,2,3"),
    ],
)
def test_options_that_cannot_be_are_refused(options, expected):
    fail(2, "generate", "--model", find_model(MODEL), "--prompt-ids", 1, "--policy", "lightthinker", *options, expected=[expected])


@pytest.mark.parametrize(
    "command, why",
    [
        (["sweep"], "answers to random prompts have none"),
        (["analyze", "--ids", "x"], "are not the text's own tokens"),
    ],
)
def test_commands_without_a_use_for_it_say_why(command, why):
    expected = ["expected one that adds no tokens", why]
    fail(2, *command, "--model", find_model(MODEL), "--policies", "none,lightthinker", *OPTIONS[2:], expected=expected)


def test_a_trace_says_why_it_has_none():
    expected = ["expected one that adds no tokens", "there is no choice to show"]
    fail(2, "trace", "--model", find_model(MODEL), "--ids", "x", "--output", "json", *OPTIONS, expected=expected)


def test_a_text_is_predicted_as_the_decoder_does_that_sees_no_thoughts():
    prompt, delimiters = EXPECTED["prompt"], set(range(5, 96, 5))
    # Longer than a step, and its last token is one of those that end thoughts.
    drawn = [7 * i * i % 96 for i in range(300)] + [5]
    text, places = list(prompt), []
    for token in drawn:
        places.append(len(text) - 1)
        text += [token, 1, 2, 3] if token in delimiters else [token]
    seen = visible(text, len(prompt), delimiters, 2, 3)
    logits = logits_of("llama_p48_c8", text, seen)[places]
    logits -= logits.max(axis=-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = -logits[np.arange(len(drawn)), drawn]
    arguments = ["--ids", "-", "--prompt-tokens", len(prompt), "--cache-dtype", "fp32", "--output", "json"]
    perplexity = ["perplexity", "--model", find_model(MODEL), *arguments]
    given = json.dumps(prompt + drawn)
    found = json.loads(succeed(*perplexity, *OPTIONS, input=given).stdout)
    assert found["nll"] == pytest.approx(expected.tolist(), abs=1e-4)
    assert found["compressions"] == sum(token in delimiters for token in drawn[:-1])

    # In a list, beside others and the whole cache: a thought that never ends leaves it whole.
    ids = " ".join(map(str, sorted(delimiters)))
    labels = [f"lightthinker:delimiters={ids}", "rpc:interval=32:window=8", "lightthinker:delimiters=95"]
    never = [token for token in drawn if token != 95]
    listed = json.loads(
        succeed(
            *perplexity, "--policies", ",".join(labels), "--gists", "1,2", "--resume", 3, "--against", "none",
            input=json.dumps(prompt + never),
        ).stdout
    )  # fmt: skip
    assert [one["policy"] for one in listed["policies"]] == labels
    summed, _, whole = listed["policies"]
    assert whole["nll"] == listed["full_nll"] and whole["kl"] == [0] * len(never)
    assert len(summed["kl"]) == len(never) and summed["mean_kl"] > 0

    most = 4096 - len(prompt) - 4
    fail(
        1, *perplexity, *OPTIONS, input=json.dumps(prompt + [5] * most), expected=["expected a text that fits the context"]
    )


def test_answers_of_eval_are_those_of_generate(text_model, tmp_path):
    problems = tmp_path / "free.jsonl"
    problems.write_text(json.dumps({"id": 1, "prompt": "Write on.", "answer": 2}) + "\n")
    ids = " ".join(map(str, range(5, 90, 5)))
    label = f"lightthinker:delimiters={ids}:gists=1 2"
    common = ["--max-tokens", 120, "--cache-dtype", "fp32"]
    out = tmp_path / "out"
    command = ["eval", "--model", text_model, "--problems", problems, "--out", out, "--output", "json", *common]
    report = json.loads(succeed(*command, "--policies", f"none,{label}").stdout)
    (record,) = (
        answer for answer in map(json.loads, (out / "answers.jsonl").read_text().splitlines()) if answer["policy"] == label
    )
    alone = generate(
        text_model, "--prompt", "Write on.", "--temperature", 0, "--seed", record["seed"], *common,
        "--policy", "lightthinker", "--delimiters", ids, "--gists", "1,2",
    )  # fmt: skip
    assert record["text"] == alone["text"] and record["tokens"] == len(alone["tokens"])
    assert record["compressions"] == alone["stats"]["compressions"] > 0
    assert [row["policy"] for row in report["rows"]] == ["none", label]
