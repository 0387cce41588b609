"""The policy `lightthinker` in the program; what it computes is tested in tests/abi/test_lightthinker.py."""

import json

import pytest
from conftest import GOLDEN, fail, find_model, generate

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


def test_commands_that_draw_no_tokens_refuse_it():
    expected = ["expected one that adds no tokens"]
    fail(2, "perplexity", "--model", find_model(MODEL), "--ids", "x", *OPTIONS, expected=expected)
    fail(2, "sweep", "--model", find_model(MODEL), "--policies", "none,lightthinker", *OPTIONS[2:], expected=expected)
