"""`reasoning-rpc trace`: its data against golden kept sets, its page in a real browser against its data."""

import json
import re

import pytest
from browser import Browser
from conftest import fail, find_model, make_text_model, run, seal, succeed, tokenizer_json
from test_generate import FLAVOURS, GREEDY, NAMES, golden, ids, rpc_options, text_positions


def trace(model, *arguments, **options):
    """The object that `trace --output json` prints."""
    result = succeed("trace", "--model", model, "--output", "json", *arguments, **options)
    assert result.stderr == ""
    return json.loads(result.stdout)


def check_candidates(found, window):
    """Candidates are what was kept before, then what has left the window since; positions are of the text."""
    past = {}
    for c in found["compressions"]:
        assert c["window_start"] == found["prompt_tokens"] + c["at_token"] - window
        assert len(c["candidates"]) == len(c["scores"]) == found["kv_heads"]
        for head, candidates in enumerate(c["candidates"]):
            kept = c["kept"][head if len(c["kept"]) > 1 else 0]
            before, fresh = past.get((c["layer"], head), ([], found["prompt_tokens"]))
            assert candidates == before + list(range(fresh, c["window_start"]))
            assert set(kept) <= set(candidates)
            assert len(c["scores"][head]) in [0, len(candidates)]
            past[c["layer"], head] = (kept, c["window_start"])
        # Both lengths are those of the longest KV head.
        longest = [max(map(len, c[key])) for key in ("candidates", "kept")]
        assert c["len_before"] - c["len_after"] == longest[0] - longest[1]


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", NAMES)
def test_golden(name, flavour):
    expected = golden(name)
    prompt, result = expected["prompt"], expected["results"]["rpc"]
    model = find_model(f"golden/{name}-{flavour}")
    common = [*rpc_options(expected), "--cache-dtype", "fp32"]
    answered = trace(
        model, "--prompt-ids", ids(prompt), "--max-tokens", len(result["tokens"]), "--temperature", 0, *common
    )
    assert answered["tokens"] == prompt + result["tokens"]
    wanted = list(text_positions(result["compressions"], len(prompt), expected["P"], expected["R"]))
    assert [{name: c[name] for name in wanted[0]} for c in answered["compressions"]] == wanted
    check_candidates(answered, expected["R"])
    # Softmax over the candidates, summed over the window.
    for c in answered["compressions"]:
        for scores in c["scores"]:
            assert sum(scores) == pytest.approx(expected["R"], rel=1e-4)
    # A text is traced as if it had been written; steps are longer, so that sums are in another order.
    read = trace(model, "--ids", "-", "--prompt-tokens", len(prompt), *common, input=json.dumps(answered["tokens"]))
    for a, b in zip(answered.pop("compressions"), read.pop("compressions"), strict=True):
        for one, other in zip(a.pop("scores"), b.pop("scores"), strict=True):
            assert one == pytest.approx(other, rel=1e-3)
        assert a == b
    assert answered == read


# Bytes of their own in place of letters: quotes, &, a backslash, and the end of U+2028.
HOSTILE_BYTES = {"Q": '"', "W": "&", "X": "\\", "Y": chr(0x80 + 162), "Z": chr(0xA8)}
# One token. All others are bytes.
HOSTILE_TOKEN = "</script><script>window.hacked=1</script><!--"
HOSTILE = f"""{HOSTILE_TOKEN}<script>'"&lt;\\u003c\u2028<b onclick=x>é👍]]>{{{{}}}}
{{1}}"""


@pytest.fixture(scope="module")
def hostile_model(tmp_path_factory):
    folder = make_text_model(tmp_path_factory.mktemp("models") / "<i>hostile' name")
    tokenizer = tokenizer_json()
    tokenizer["added_tokens"][0]["content"] = HOSTILE_TOKEN
    vocabulary = tokenizer["model"]["vocab"]
    for letter, other in HOSTILE_BYTES.items():
        vocabulary[other] = vocabulary.pop(letter)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    seal(folder)
    return folder


POLICIES = {
    "layer": ["--policy", "rpc"],
    "kv_head": ["--policy", "rpc", "--aggregation", "kv_head"],
    "no_scores": ["--policy", "random", "--seed", 3],
    "merge": ["--policy", "lookahead-merge", "--aggregation", "kv_head", "--entries", 11],
    "adaptive": [],
}
SIZES = ["--interval", 32, "--window", 8, "--cache-dtype", "fp32"]
PROMPT = 9


@pytest.fixture(scope="module", params=POLICIES)
def traced(request, hostile_model, tmp_path_factory):
    """A hostile text's data and page."""
    text = HOSTILE * 4
    page = tmp_path_factory.mktemp("pages") / "page #1.html"
    # The first byte of a character, and no second one.
    tokens = [*json.loads(succeed("tokenize", "--model", hostile_model, "--text", text).stdout), 92, 0, 92]
    data = trace(
        hostile_model, "--ids", "-", "--prompt-tokens", PROMPT, *SIZES, *POLICIES[request.param], "--html", page,
        input=json.dumps(tokens),
    )  # fmt: skip
    assert data["tokens"] == tokens and HOSTILE_TOKEN in data["pieces"]
    # An incomplete character before something else, and at the end.
    assert "".join(data["pieces"]) == text + "\ufffd\n\ufffd"
    return data, page


@pytest.fixture(scope="module")
def browser():
    browser = Browser()
    yield browser
    browser.close()


def heads_of(data, layer, head):
    def chosen(asked, count):
        return range(count) if asked == "all" else [int(asked)]

    return [(l, h) for l in chosen(layer, data["layers"]) for h in chosen(head, data["kv_heads"])]


def expected_view(data, compression, layer, head):
    """What is to be seen of each token: its kind, and the share of the heads that have it."""
    layers = data["compressions"][(compression - 1) * data["layers"] :][: data["layers"]]
    chosen = heads_of(data, layer, head)
    written = PROMPT + layers[0]["at_token"]
    seen = []
    for position in range(len(data["tokens"])):
        kept = had = 0
        for l, h in chosen:
            sets = layers[l]["kept"]
            kept += position in sets[h if len(sets) > 1 else 0]
            had += position in layers[l]["candidates"][h]
        if position < PROMPT:
            kind = "given"
        elif position >= written:
            kind = "later"
        elif position >= layers[l]["window_start"]:
            kind = "window"
        else:
            kind = "kept" if kept else "dropped" if had else "gone"
        seen.append([kind, f"{kept / len(chosen):.3f}"])
    return seen


def view(browser):
    return browser.evaluate("spans.map(s => [s.dataset.kind, s.style.getPropertyValue('--share')])")


def test_page(traced, browser):
    data, page = traced
    rounds = len(data["compressions"]) // data["layers"]
    assert rounds >= 3
    browser.open(page.as_uri())
    # The text is the text, and none of it is anything else.
    assert browser.evaluate("document.getElementById('text').textContent") == "".join(data["pieces"])
    assert browser.evaluate("[typeof hacked, document.scripts.length, document.querySelectorAll('b, i').length]") == [
        "undefined", 2, 0,
    ]  # fmt: skip
    assert "<i>hostile' name" in browser.evaluate("document.title")
    assert view(browser) == expected_view(data, rounds, "all", "all")

    # The slider, by keys.
    browser.evaluate("document.getElementById('compression').focus()")
    browser.press("ArrowLeft")
    assert view(browser) == expected_view(data, rounds - 1, "all", "all")
    assert f"compression={rounds - 1}&layer=all" in browser.evaluate("location.hash")
    browser.press("Home")
    assert view(browser) == expected_view(data, 1, "all", "all")
    summary = browser.evaluate("document.getElementById('summary').textContent")
    assert f"Compression 1 of {rounds}, after 40 generated tokens" in summary
    browser.press("ArrowRight")
    # Tab leads on to the layer, and a key to the first one, then to the head.
    for _ in "layer", "head":
        browser.press("Tab")
        browser.press("ArrowDown")
    assert view(browser) == expected_view(data, 2, 0, 0)
    first = data["compressions"][data["layers"]]
    figures = (len(first["kept"][0]), len(first["candidates"][0]))
    summary = browser.evaluate("document.getElementById('summary').textContent")
    assert "Layer 0, KV head 0: kept %d of %d candidates." % figures in summary
    row = browser.evaluate("document.querySelector('[aria-current]').innerText").split()
    assert row[:4] == ["2", "72", str(figures[1]), str(figures[0])]

    # Everything else, by address.
    for compression in range(1, rounds + 1):
        for layer in ["all", *range(data["layers"])]:
            for head in ["all", *range(data["kv_heads"])]:
                browser.evaluate(f"location.hash = 'compression={compression}&layer={layer}&head={head}'; read()")
                assert view(browser) == expected_view(data, compression, layer, head), (compression, layer, head)
    # What is no compression, layer or head changes nothing.
    browser.evaluate("location.hash = 'compression=x&layer=99&head=&colour=red'; read()")
    assert view(browser) == expected_view(data, rounds, data["layers"] - 1, data["kv_heads"] - 1)
    assert browser.requests == [page.as_uri()]
    assert browser.errors == []


def test_scores_in_the_page(traced, browser):
    data, page = traced
    browser.open(page.as_uri() + "#compression=2&layer=1&head=1&colour=score")
    c = data["compressions"][data["layers"] + 1]
    if not c["scores"][1]:
        assert browser.evaluate("document.getElementById('colour').value") == "kept"
        return
    found = browser.evaluate("Array.from(look(1, chosen()).scores)")
    scores = c["scores"][1]
    positive = [score for score in scores if score > 0]
    near = (max(positive) / min(positive)) ** (1 / 508) - 1
    for position, score in zip(c["candidates"][1], scores, strict=True):
        assert found[position] == pytest.approx(score, rel=near * 1.01 + 1e-5)
    # The best is the strongest.
    best = c["candidates"][1][scores.index(max(scores))]
    assert browser.evaluate(f"spans[{best}].style.getPropertyValue('--share')") == "1.000"
    assert browser.evaluate(f"spans[{best}].classList.contains('scored')")


def test_a_token_is_told_of(traced, browser):
    data, page = traced
    browser.open(page.as_uri() + "#compression=1")
    browser.click(f"span[data-i='{PROMPT}']")
    told = "document.getElementById('token').textContent"
    assert browser.evaluate(told).startswith(f"Token {PROMPT}: {json.dumps(data['pieces'][PROMPT], ensure_ascii=False)}, id ")
    browser.press("ArrowRight")
    assert browser.evaluate(told).startswith(f"Token {PROMPT + 1}: ")
    browser.press("End")
    browser.press("ArrowLeft")
    browser.press("ArrowLeft")
    # A byte that begins a character.
    assert "A part of the character" in browser.evaluate(told)
    assert browser.evaluate("document.querySelectorAll('.current').length") == 1


def test_colours_can_be_read(traced, browser):
    """Contrasts of at least 4.5 (WCAG AA) between letters and what is behind them, by day and by night."""
    _, page = traced
    script = """
    (() => {
        const parse = color => color.match(/[\\d.]+/g).map(Number);
        const light = ([r, g, b]) => [r, g, b].map(x => x / 255).map(x => x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4)
            .reduce((sum, x, i) => sum + x * [.2126, .7152, .0722][i], 0);
        const behind = parse(getComputedStyle(document.body).backgroundColor);
        const of = className => {
            const span = Object.assign(document.createElement('span'), { className: 't ' + className });
            document.getElementById('text').append(span);
            const style = getComputedStyle(span), ink = parse(style.color), [r, g, b, a = 1] = parse(style.backgroundColor);
            const paper = [r, g, b].map((x, i) => x * a + behind[i] * (1 - a));
            span.remove();
            const lights = [light(ink), light(paper)].sort((x, y) => y - x);
            return (lights[0] + .05) / (lights[1] + .05);
        };
        return Object.fromEntries(['', 'given', 'window', 'kept', 'dropped', 'gone', 'later', 'scored', 'dropped scored'].map(x => [x, of(x)]));
    })()"""
    papers = set()
    for scheme in ["light", "dark"]:
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        browser.open(page.as_uri())
        papers.add(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
        contrasts = browser.evaluate(script)
        assert min(contrasts.values()) >= 4.5, (scheme, contrasts)
    browser.call("Emulation.setEmulatedMedia", features=[])
    assert len(papers) == 2


def test_no_compression(tiny, tmp_path, browser):
    page = tmp_path / "page.html"
    succeed("trace", "--model", tiny, "--prompt-ids", "1,2,3", "--max-tokens", 5, *GREEDY, "--html", page)
    browser.open(page.as_uri())
    assert "No compression ran" in browser.evaluate("document.getElementById('summary').textContent")
    assert re.fullmatch(r"1 2 3 (\d+ ){5}", browser.evaluate("document.getElementById('text').textContent"))
    assert browser.errors == []


def test_size_of_a_page(smollm2, tmp_path):
    """A byte for each score, a bit for each candidate, in base64."""
    page = tmp_path / "page.html"
    data = trace(
        smollm2, "--prompt", "Why is the sky blue?", "--max-tokens", 300, "--ignore-eos", "--seed", 1,
        "--interval", 64, "--window", 16, "--html", page,
    )  # fmt: skip
    check_candidates(data, 16)
    candidates = sum(len(scores) for c in data["compressions"] for scores in c["scores"])
    assert candidates > 10_000
    assert page.stat().st_size < candidates * 4 / 3 * (1 + 1 / 8) + 64_000


def test_errors(tiny, tmp_path):
    (tmp_path / "ids").write_text("[1, 2, 3]")
    text = ["--ids", tmp_path / "ids", "--output", "json"]
    for arguments, expected in [
        (["--prompt-ids", "1"], ["--html FILE or --output json", "found neither"]),
        (["--output", "text"], ["--output: expected json"]),
        (["--output", "json"], ["a prompt or a text", "found neither"]),
        ([*text, "--prompt-ids", "1"], ["--prompt-ids: expected with a prompt that is answered, found --ids"]),
        ([*text, "--temperature", 1], ["--temperature", "found --ids"]),
        ([*text, "--ignore-eos"], ["--ignore-eos", "found --ids"]),
        ([*text, "--text", tmp_path / "ids"], ["one of --text and --ids, found both"]),
        (["--prompt-ids", "1", "--output", "json", "--prompt-tokens", 3], ["--prompt-tokens: expected with --text or --ids"]),
        (["--prompt-ids", "1", "--output", "json", "--policy", "h2o"], ["--policy: expected one that compresses once in an interval", "h2o"]),
    ]:
        fail(2, "trace", "--model", tiny, *arguments, expected=expected)
    fail(1, "trace", "--model", tiny, *text, "--prompt-tokens", 3, expected=["more tokens than --prompt-tokens 3", "found 3"])
    # Before the model is opened.
    nowhere = tmp_path / "none" / "page.html"
    fail(1, "trace", "--model", tmp_path, "--prompt-ids", "1", "--html", nowhere, expected=[str(nowhere)])


def test_a_page_that_is_there_stays_until_another_is(tiny, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("before")
    result = run("trace", "--model", tiny, "--prompt-ids", "96", "--html", page)
    assert result.returncode == 1 and page.read_text() == "before"
    succeed("trace", "--model", tiny, "--prompt-ids", "5", "--max-tokens", 3, "--html", page)
    assert page.read_text().startswith("<!DOCTYPE html>")
