"""The problems of small_reasoners, their checker, and, where JAX is installed, a few steps of training."""

from __future__ import annotations

import json
import os
import random
import re
import string
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import export_to
from reference import logits_of
from synthetic import Model

from small_reasoners import checkpoint
from small_reasoners.__main__ import TOLERANCE, lengths, write_problems
from small_reasoners.curve import peak_entries, peak_with_gists
from small_reasoners.problems import CHARACTERS, END_ID, GIST_ID, GISTS, LABELS, VOCABULARY, encode, first_error, make_problem, solve, tokens

PROGRAM = Path(os.environ.get("RRPC_PROGRAM") or Path(__file__).parents[2] / "target/release/reasoning-rpc")
PROMPT = "Ab3;Bk4;Ch=k+b;D?h;Ev=b-k;F#k;G?b;H!m=v+h;>"
REASONING = "Ab3;Bk4;Ch=k+b=k4+b3=h2;D?h=k+b=k4+b3=h2;Ev=b-k=b3-k4=v4;F#k4;G?b3;H!m=v+h=v4+h2=m1;"


@pytest.fixture
def generator(rng: np.random.Generator) -> random.Random:
    return random.Random(int(rng.integers(1 << 62)))


def test_a_problem_worked_by_hand() -> None:
    assert solve(PROMPT) == REASONING
    assert first_error(PROMPT, REASONING) is None
    assert first_error(PROMPT, REASONING[:-1]) == len(REASONING) - 1
    assert first_error(PROMPT, REASONING + ";") == len(REASONING)
    assert first_error(PROMPT, "") == 0
    for index, right in enumerate(REASONING):
        wrong = "9" if right != "9" else "8"
        assert first_error(PROMPT, REASONING[:index] + wrong + REASONING[index + 1 :]) == index


@pytest.mark.parametrize("lines", [5, 9, 20, 26])
def test_problems_are_right_and_as_they_are_described(generator: random.Random, lines: int) -> None:
    for _ in range(50):
        problem = make_problem(generator, lines)
        assert solve(problem.prompt) == problem.reasoning
        asked = problem.prompt.removesuffix(";>").split(";")
        said = problem.reasoning.removesuffix(";").split(";")
        assert "".join(line[0] for line in asked) == "".join(line[0] for line in said) == string.ascii_uppercase[:lines]
        assert ["!" in line for line in asked] == [False] * (lines - 1) + [True]
        # Each definition by Python's own arithmetic, in the order of the text.
        values: dict[str, int] = {}
        for line, work in zip(asked, said):
            item = line[1:].removeprefix("!")
            if item[0] in "?#":
                assert item[1:] in values, f"{line} before its definition"
            else:
                name, right = item[0], item[1:].removeprefix("=")
                assert name not in values
                operands = re.findall("[a-z]", right)
                assert len(set(operands)) == len(operands), f"{line}: an operand twice"
                values[name] = eval(right, {}, values) % 5  # noqa: S307 - earlier names, digits, a sign
            # Every value that is written, be it computed, re-checked or recapped, is that variable's.
            found = re.findall("([a-z])([0-9])", work)
            assert found and all(values[name] == int(digit) for name, digit in found)
            assert found[-1][0] == item.strip("?#")[0]
        assert values[name] == problem.answer
        encode(problem.prompt + problem.reasoning)


def test_sizes_outside_of_the_labels_are_refused(generator: random.Random) -> None:
    for lines in (4, len(LABELS) + 1):
        with pytest.raises(ValueError, match="expected 5 to 26"):
            make_problem(generator, lines)


def test_problem_files_have_their_lengths_and_are_the_same_each_time(tmp_path: Path) -> None:
    write_problems(tmp_path, 20, 20)
    assert list(lengths(20)) == [100, 160, 220]
    for length in lengths(20):
        text = (tmp_path / f"length-{length}.jsonl").read_text()
        problems = [json.loads(line) for line in text.splitlines()]
        assert [problem["id"] for problem in problems] == list(range(1, 21))
        for problem in problems:
            reasoning = solve(problem["prompt"])
            assert abs(len(reasoning) - length) <= TOLERANCE * length
            assert reasoning.endswith(f"{problem['answer']};")
    (tmp_path / "again").mkdir()
    write_problems(tmp_path / "again", 20, 20)
    assert (tmp_path / "again" / f"length-{length}.jsonl").read_text() == text


def test_every_character_has_an_id() -> None:
    vocab = checkpoint.tokenizer()["model"]["vocab"]
    assert [vocab[character] for character in CHARACTERS] == list(range(END_ID))
    assert len(vocab) == END_ID + 1 == GIST_ID < VOCABULARY


def test_training_goes_on_where_it_was_and_exports_what_it_trained(tmp_path: Path) -> None:
    pytest.importorskip("jax", reason="JAX is not installed: requirements-train.lock")
    from small_reasoners.network import Shape
    from small_reasoners.training import Plan, arrays, causal, draw_batch, run, train

    shape = Shape(VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=16)
    plan = Plan(shape, steps=4, tokens=256, warmup=1, drop=0.3)
    trunk = tmp_path / "trunk.npz"
    whole = train(plan, tmp_path / "whole.npz", trunk, print)
    # From the trunk, which the plain plan leaves as well, and from a checkpoint of each step.
    again = None
    while again is None:
        again = train(plan, tmp_path / "again.npz", trunk, print, save_every=0.0, limit=0.0)
    plain = train(replace(plan, drop=0.0), tmp_path / "plain.npz", trunk, print)
    assert all((whole[name] == again[name]).all() for name in whole)
    assert not all((whole[name] == plain[name]).all() for name in whole)
    train(replace(plan, drop=0.0, gists=2), tmp_path / "gists.npz", trunk, print)
    with pytest.raises(SystemExit, match="expected a checkpoint of"):
        train(replace(plan, steps=5), tmp_path / "plain.npz", trunk, print)

    checkpoint.write_checkpoint(tmp_path / "huggingface", whole, shape)
    manifest = export_to(tmp_path / "huggingface", tmp_path / "model")
    assert manifest["tokens"]["stop"] == [END_ID] and "tokenizer.json" in manifest["files"]
    # The network is the decoder that the graph is tested against; float32 beside float64, logits near 1.
    config = json.loads((tmp_path / "huggingface" / "config.json").read_text())
    model = Model(config, {name: np.asarray(value) for name, value in whole.items()})
    batch = arrays(draw_batch(plan, 0))
    found = np.asarray(run(whole, shape, batch, causal(batch["ids"].shape[1])[None, None, None]))
    expected = logits_of(model, batch["ids"][0].tolist())[:-1]
    np.testing.assert_allclose(found[0], expected, atol=1e-4)


def test_what_training_hides(generator: random.Random) -> None:
    pytest.importorskip("jax", reason="JAX is not installed: requirements-train.lock")
    import jax

    from small_reasoners.training import Plan, arrays, make_batch, targets, visible

    problems = [make_problem(generator, lines) for lines in (5, 8)]
    batch = make_batch(problems, 2)
    following, counted = (np.asarray(x) for x in targets(arrays(batch)))
    seen = np.asarray(visible(arrays(batch), Plan(gists=2), jax.random.key(0)))[0, :, 0]
    for row, problem in enumerate(problems):
        # Walks the text as an engine does: a line goes when its gists are written.
        ids, cache, line, expected = tokens(problem, 2), [], [], []
        for at, token in enumerate(ids):
            assert sorted(np.flatnonzero(seen[row, at])) == sorted([*cache, *line, at]), at
            line.append(at)
            if at < len(problem.prompt):
                cache, line = [*cache, at], []
            elif token == GIST_ID and ids[at + 1] != GIST_ID:
                cache, line = [*cache, at - 1, at], []
            elif token != GIST_ID:
                expected.append(token)
        assert following[row][counted[row]].tolist() == expected == [*encode(problem.reasoning), END_ID]

    batch = make_batch(problems)
    plan = Plan(drop=0.3)
    kept = np.asarray(visible(arrays(batch), plan, jax.random.key(int(generator.random() * 1e9))))
    index = np.arange(batch.ids.shape[1])
    causal = index[:, None] >= index
    for row, begin in enumerate(batch.begins):
        always = causal & ((index < begin) | (index[:, None] - index < plan.window))
        assert kept[:, row][..., always].all() and not kept[:, row][..., ~causal].any()
        # A key that is dropped is dropped for all queries that are far enough, in its layer and KV head.
        old = kept[:, row, :, -1, begin : -plan.window]
        assert ((kept[:, row, :, -2, begin : -plan.window - 1]) == old[..., :-1]).all()
    share = kept[:, :, :, -1, max(batch.begins) : -plan.window].mean()
    assert abs(share - 0.7) < 0.15, "of some hundred draws"


def test_the_engine_hides_what_training_hides(tmp_path: Path, generator: random.Random) -> None:
    """Greedy answers under the policy lightthinker, each token beside the network in JAX, which sees the whole text
    under the mask of the training and knows no cache."""
    pytest.importorskip("jax", reason="JAX is not installed: requirements-train.lock")
    import jax

    from small_reasoners.network import Shape, initialize
    from small_reasoners.training import Batch, Plan, arrays, causal, run, visible

    assert PROGRAM.is_file(), f"{PROGRAM} is missing: run `make build`"
    shape = Shape(VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=16)
    weights = initialize(shape, generator.getrandbits(32))
    # So large a head that near-ties are rare.
    weights["lm_head.weight"] = 50 * weights["lm_head.weight"]
    # And attention that decides tokens: what is hidden would, too.
    for name in weights:
        if name.endswith(("v_proj.weight", "o_proj.weight")):
            weights[name] = 4 * weights[name]
    checkpoint.write_checkpoint(tmp_path / "huggingface", weights, shape)
    export_to(tmp_path / "huggingface", tmp_path / "model")
    worked = 0
    for _ in range(4):
        prompt = encode(make_problem(generator, 6).prompt)
        delimiters = generator.sample(range(END_ID), 20)
        listed = lambda ids: ",".join(map(str, ids))
        answer = subprocess.run(
            [PROGRAM, "generate", "--model", tmp_path / "model", "--prompt-ids", listed(prompt), "--max-tokens", "150",
             "--temperature", "0", "--ignore-eos", "--cache-dtype", "fp32", "--output", "json",
             "--policy", "lightthinker", "--delimiters", listed(delimiters), "--gists", listed([GIST_ID] * GISTS)],
            stdout=subprocess.PIPE, check=True,
        ).stdout  # fmt: skip
        text, drawn = list(prompt), []
        for token in json.loads(answer)["tokens"]:
            drawn.append(len(text))
            text += [token, *[GIST_ID] * GISTS] if token in delimiters else [token]
        batch = arrays(Batch(np.array([text], np.int32), np.array([len(prompt)]), np.array([len(text)])))
        seen = visible(batch, Plan(shape, gists=GISTS), jax.random.key(0))
        # The tokenizer does not know the gist, so that it is never drawn.
        logits, whole = (
            np.asarray(run(weights, shape, batch, mask))[0][np.array(drawn) - 1, : END_ID + 1]
            for mask in (seen, causal(len(text))[None, None, None])
        )
        chosen = logits[np.arange(len(drawn)), np.array(text)[drawn]]
        # Float32 on both sides: what is not the best was not told apart from it.
        assert (logits.max(axis=1) - chosen <= 1e-4 * np.abs(logits).max()).all()
        worked += (whole.argmax(axis=1) != logits.argmax(axis=1)).sum()
    assert worked > 0, "what is hidden decides tokens"


def test_the_peak_with_gists_is_that_of_a_text_played_through(generator: random.Random) -> None:
    for lines in (5, 9, 26):
        problem = make_problem(generator, lines)
        held = most = line = 0
        for token in tokens(problem, GISTS)[len(problem.prompt) : -1]:
            held += 1
            most = max(most, held)
            line += token != GIST_ID
            if token == GIST_ID and (gists := gists + 1) == GISTS:
                held, line = held - line, 0
            elif token != GIST_ID:
                gists = 0
        assert peak_with_gists(problem.reasoning) == most


def test_the_peak_is_that_of_a_schedule_played_through(generator: random.Random) -> None:
    for _ in range(200):
        ratio, window = generator.randint(1, 8), generator.randint(1, 20)
        interval = ratio * generator.randint(window // ratio + 1, 40)
        length = generator.randint(1, 400)
        held = most = done = 0
        for written in range(1, length):
            held += 1
            most = max(most, held)
            if written == window + (done + 1) * interval:
                done += 1
                held = done * interval // ratio + window
        assert peak_entries(length, interval, window, ratio) == most
