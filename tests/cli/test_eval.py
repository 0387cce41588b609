"""`reasoning-rpc eval`: answers are those of `generate`, a run goes on where it was, and the report adds up."""

import json
import re
import signal
from html.parser import HTMLParser

import pytest
from conftest import fail, generate, seen_on_a_terminal, start, succeed

# The tiny model writes noise: what can be said of it is that it writes words, without ever being asked.
PROBLEMS = [
    {"id": "sum", "prompt": "What is 1 + 1?", "answer": 2},
    {
        "id": "words",
        "prompt": "Write words.",
        "instruction_id_list": ["length_constraints:number_words", "detectable_format:title"],
        "kwargs": [{"relation": "at least", "num_words": 1}, {}],
    },
    {
        "id": "any",
        "prompt": "Write.",
        "instruction_id_list": ["length_constraints:number_words"],
        "kwargs": [{"relation": "at least", "num_words": 1}],
    },
    {"id": "free", "prompt": "Write on."},
]
FUNCTION = {
    "task_id": "F/0",
    "prompt": "def f(x):\n    return x + 1\n\n",
    "entry_point": "f",
    "test": "def check(candidate):\n    assert candidate(1) == 2\n",
}
OPTIONS = ["--max-tokens", 120, "--interval", 32, "--window", 8, "--cache-dtype", "fp32"]


def write(path, problems):
    path.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    return path


@pytest.fixture
def problems(tmp_path):
    return write(tmp_path / "mixed.jsonl", PROBLEMS)


def evaluate(model, out, *arguments, **options):
    result = succeed("eval", "--model", model, "--out", out, "--output", "json", *OPTIONS, *arguments, **options)
    assert result.stderr == ""
    report = json.loads(result.stdout)
    assert report == json.loads((out / "report.json").read_text())
    return report


def answers(out, file="answers.jsonl"):
    lines = (out / file).read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return {(a["model"], a["policy"], a["set"], a["problem"], a["sample"]): a for a in found}


def test_answers_are_those_of_generate(text_model, problems, tmp_path):
    out = tmp_path / "out"
    report = evaluate(
        text_model, out, "--problems", problems, "--policies", "none,rpc,rpc:ratio=1,random:interval=16", "--rows", 3
    )
    found = answers(out)
    assert len(found) == 4 * len(PROBLEMS)
    for problem in PROBLEMS:
        for label, options in [
            ("none", ["--policy", "none"]),
            ("rpc", ["--policy", "rpc"]),
            ("random:interval=16", ["--policy", "random", "--interval", 16]),
        ]:
            record = found["text", label, "mixed", problem["id"], 0]
            shared = OPTIONS[:2] + OPTIONS[4:] + ([] if "--interval" in options else OPTIONS[2:4])
            alone = generate(
                text_model, "--prompt", problem["prompt"], "--temperature", 0, "--seed", record["seed"], *shared, *options
            )
            assert record["text"] == alone["text"]
            assert record["tokens"] == len(alone["tokens"])
            assert record["stop_reason"] == alone["stop_reason"]
            assert record["compressions"] == alone["stats"]["compressions"]
            assert record["cache_peak_bytes"] == alone["stats"]["cache_peak_bytes"] <= record["cache_bound_bytes"]
        assert found["text", "rpc:ratio=1", "mixed", problem["id"], 0]["text"] == found["text", "none", "mixed", problem["id"], 0]["text"]
    rows = {row["policy"]: row for row in report["rows"]}
    assert list(rows) == ["none", "rpc", "rpc:ratio=1", "random:interval=16"]
    for label, row in rows.items():
        mine = [a for key, a in found.items() if key[1] == label]
        passed = [a["score"]["passed"] for a in mine]
        assert (row["problems"], row["samples"]) == (4, 1)
        assert row["accuracy"] == pytest.approx(passed.count(True) / 3)
        assert passed.count(None) == 1
        assert row["mean_tokens"] == pytest.approx(sum(a["tokens"] for a in mine) / 4)
        assert row["peak_bytes"] == max(a["cache_peak_bytes"] for a in mine)
        assert row["bound_bytes"] == max(a["cache_bound_bytes"] for a in mine)
        assert row["instructions"]["strict"] == pytest.approx(2 / 3)
    assert rows["none"]["against_none"] is None
    assert rows["rpc:ratio=1"]["against_none"] == {"problems": 3, "better_none": 0, "better_this": 0, "p": 1.0}
    assert rows["rpc"]["bound_bytes"] < rows["none"]["bound_bytes"]


def test_a_run_that_was_broken_off_goes_on(text_model, problems, tmp_path):
    out = tmp_path / "out"
    arguments = ["--problems", problems]
    first = evaluate(text_model, out, *arguments)
    file = out / "answers.jsonl"
    whole, before = file.read_bytes(), answers(out)
    assert evaluate(text_model, out, *arguments) == first
    assert file.read_bytes() == whole
    # Killed in the middle of a line: that answer is written again, and is the same.
    file.write_bytes(whole[:-40])
    evaluate(text_model, out, *arguments)
    again = answers(out)
    timeless = lambda found: {k: {n: v for n, v in a.items() if not n.endswith("seconds")} for k, a in found.items()}
    assert timeless(again) == timeless(before)
    # What is new is added; what is there stays.
    report = evaluate(text_model, out, *arguments, "--policies", "none,rpc,random")
    assert file.read_bytes().startswith(whole[: whole[:-1].rfind(b"\n") + 1])
    assert len(answers(out)) == 16 and [row["policy"] for row in report["rows"]] == ["none", "rpc", "random"]
    file.write_bytes(b"nonsense\n" + file.read_bytes())
    fail(1, "eval", "--model", text_model, "--out", out, *OPTIONS, *arguments, expected=["line 1: expected an answer"])


def test_samples(text_model, problems, tmp_path):
    report = evaluate(
        text_model, tmp_path / "out", "--problems", problems, "--samples", 3, "--temperature", 0.9, "--top-p", 0.95, "--seed", 4
    )
    found = answers(tmp_path / "out")
    assert len(found) == 3 * 3 * len(PROBLEMS)
    seeds = [{key[2:]: a["seed"] for key, a in found.items() if key[1] == policy} for policy in ["none", "rpc", "lookahead-merge"]]
    assert seeds[0] == seeds[1] == seeds[2] and len(set(seeds[0].values())) == 3 * len(PROBLEMS)
    texts = {a["text"] for key, a in found.items() if key[3] == "sum" and key[1] == "none"}
    assert len(texts) == 3
    assert all(row["samples"] == 3 and row["problems"] == 4 for row in report["rows"])


def test_programs(text_model, tmp_path):
    functions = write(tmp_path / "functions.jsonl", [FUNCTION])
    result = succeed(
        "eval", "--model", text_model, "--out", tmp_path / "out", "--problems", functions, "--policies", "none",
        "--max-tokens", 40, "--output", "json",
    )  # fmt: skip
    report = json.loads(result.stdout)
    record = answers(tmp_path / "out")["text", "none", "functions", "F/0", 0]
    # Noise behind a function that is right already: a mistake in its syntax.
    assert record["score"]["passed"] is False and record["score"]["note"]
    setup = dict(report["setup"])
    assert "python3" in setup["programs"] and "no sockets" in setup["programs"]
    # A text to continue goes in as it is.
    alone = generate(text_model, "--prompt", FUNCTION["prompt"], "--raw", "--temperature", 0, "--max-tokens", 40)
    stops = ["\nclass", "\ndef", "\n#", "\nif", "\nprint", "```"]
    cut = min([alone["text"].find(stop) for stop in stops if stop in alone["text"]], default=len(alone["text"]))
    assert record["text"] == alone["text"][:cut]


class Page(HTMLParser):
    """Which tags a page has, and what they refer to."""

    def __init__(self):
        super().__init__()
        self.tags, self.links = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]


def test_reports(text_model, problems, tmp_path):
    out = tmp_path / "out"
    policies = ["--policies", "none,rpc"]
    markdown = succeed("eval", "--model", text_model, "--out", out, "--problems", problems, *policies, *OPTIONS).stdout.decode()
    assert markdown == (out / "report.md").read_text()
    assert "## text on mixed" in markdown and "Equal peak bytes: every policy that compresses has at most" in markdown
    assert re.search(r"\| rpc \| \d+\.\d% \| \d+\.\d% to \d+\.\d% \|", markdown)
    assert "policy rpc: rpc, interval 32, window 8, ratio 4" in markdown
    page = Page()
    page.feed((out / "report.html").read_text())
    assert page.tags.count("svg") == 5 and page.tags.count("table") == 2 and not page.links
    assert "script" not in page.tags
    # Policies of unequal bytes are not passed off as equal.
    unequal = succeed(
        "eval", "--model", text_model, "--out", out, "--problems", problems, "--max-tokens", 400, *OPTIONS[2:],
        "--policies", "none,rpc,rpc:interval=96",
    ).stdout.decode()  # fmt: skip
    assert "Peak bytes are NOT equal" in unequal


def test_ctrl_c(text_model, problems, tmp_path):
    out = tmp_path / "out"
    arguments = ["eval", "--model", text_model, "--out", out, "--problems", problems, "--interval", 64, "--rows", 1]
    process = start(*arguments, "--max-tokens", 4000, "--policies", "none", "--prompt", "chat")
    file = out / "answers.jsonl"
    while process.poll() is None and not (file.exists() and b"\n" in file.read_bytes()):
        pass
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("the answers were written before the signal came")
    assert process.returncode == 130 and b"the same command goes on" in err
    assert not (out / "report.json").exists()
    done = len(answers(out))
    assert 1 <= done < len(PROBLEMS)


def test_progress_is_for_terminals(text_model, problems, tmp_path):
    seen = seen_on_a_terminal("eval", "--model", text_model, "--out", tmp_path / "out", "--problems", problems, *OPTIONS)
    assert b"rpc [" in seen and b"4/4 answers" in seen


def test_a_real_model(smollm2, tmp_path):
    sums = write(
        tmp_path / "sums.jsonl",
        [{"prompt": f"What is {n} plus {n}? Answer with one number.", "answer": 2 * n} for n in (1, 2)],
    )
    out = tmp_path / "out"
    report = json.loads(
        succeed(
            "eval", "--model", smollm2, "--out", out, "--problems", sums, "--policies", "none,rpc", "--max-tokens", 24,
            "--interval", 8, "--window", 4, "--output", "json",
        ).stdout
    )  # fmt: skip
    assert [row["problems"] for row in report["rows"]] == [2, 2]
    assert all(0 <= row["accuracy"] <= 1 and row["tokens_per_second"] > 0 for row in report["rows"])


def test_errors(text_model, problems, tmp_path):
    out = ["--out", tmp_path / "out"]
    common = ["eval", "--model", text_model, *out]
    asked = ["--problems", problems]
    for arguments, expected in [
        (["eval", *out, *asked], ["--model DIR", "none"]),
        (["eval", "--model", text_model, *asked], ["--out DIR", "none"]),
        (common, ["--problems FILE", "none"]),
        ([*common, *asked, *asked], ["different names", '"mixed" twice']),
        ([*common, *asked, "--policies", "none,none"], ["each once", '"none" twice']),
        ([*common, *asked, "--policies", "rpc:colour=3"], ["an option of the policy", '"colour=3"']),
        ([*common, *asked, "--policies", "rpc:ratio=3"], ["rpc:ratio=3: interval: expected a positive multiple"]),
        ([*common, *asked, "--policies", "magic"], ["--policies: magic", "lookahead"]),
        ([*common, *asked, "--policy", "rpc"], ["found --policy"]),
        ([*common, *asked, "--samples", 2], ["--samples: expected 1 at temperature 0"]),
        ([*common, *asked, "--prompt", "x"], ["--prompt: expected chat or raw"]),
    ]:
        fail(2, *arguments, expected=expected)
    fail(1, *common, "--problems", tmp_path / "absent", expected=["absent"])
    for line, expected in [("nonsense", "expected"), ('{"answer": 1}', "prompt: expected a text"), ("", "found none")]:
        (tmp_path / "bad.jsonl").write_text(json.dumps(PROBLEMS[0]) + "\n" + line + "\n" if line else "")
        message = fail(1, *common, "--problems", tmp_path / "bad.jsonl", expected=[expected])
        assert ":2: " in message or not line


def test_answers_of_another_check_or_machine(text_model, problems, tmp_path):
    """What an earlier checker said is asked again; what other instructions computed is written again."""
    out = tmp_path / "out"
    arguments = ["--problems", problems, "--policies", "none,lookahead-merge:queries=stored"]
    evaluate(text_model, out, *arguments)
    file, right = out / "answers.jsonl", answers(out)
    assert answers(out, "run.jsonl") == right
    # The queries that a policy stores are of its bound.
    assert all(a["cache_peak_bytes"] <= a["cache_bound_bytes"] for a in right.values())

    def change(**fields):
        records = [json.loads(line) | fields for line in file.read_text().splitlines()]
        write(file, records)

    unlike = {"passed": False, "note": "another checker's"}
    change(checked_by="1", score=unlike)
    evaluate(text_model, out, *arguments)
    assert answers(out) == right
    write(file, list(right.values()))
    change(simd="another", text="")
    evaluate(text_model, out, *arguments)
    assert [a["text"] for a in answers(out).values()] == [a["text"] for a in right.values()]


def test_what_would_be_mixed_up_is_refused(text_model, problems, tmp_path):
    def refused(*arguments, expected, code=2, first=problems):
        fail(code, "eval", "--out", tmp_path / "out", "--model", text_model, "--problems", first, *arguments, expected=expected)

    copy = tmp_path / "copy" / text_model.name
    copy.mkdir(parents=True)
    refused("--model", copy, expected=["expected folders of different names", text_model.name])
    twice = write(tmp_path / "twice.jsonl", [PROBLEMS[0], PROBLEMS[3], PROBLEMS[0]])
    refused(first=twice, code=1, expected=["twice.jsonl:3", 'expected a name of its own, found "sum" again'])
    refused("--system", "Answer in French.", "--prompt", "raw", expected=["--system: expected with questions"])
    refused("--policies", "none,snapkv", "--kernel", 3, expected=["--kernel: expected a policy in --policies that reads it"])
