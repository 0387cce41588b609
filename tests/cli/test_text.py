"""Text in and out: on a tiny model with a tokenizer of single bytes, and on a real one."""

import json
import os
import signal
import subprocess

import pytest
from conftest import ALPHABET, END, GOLDEN, USER, generate, inspect, make_text_model, seen_on_a_terminal, start, succeed

COMMANDS = ["generate", "perplexity", "eval", "sweep", "tokenize", "inspect", "trace"]


def of(text):
    """The ids of a text, byte by byte."""
    return [ALPHABET.index(byte) for byte in text.encode()]


def tokenize(model, *arguments, **options):
    return succeed("tokenize", "--model", model, *arguments, **options).stdout.decode()


def stream(model, *arguments, **options):
    """Text output and statistics."""
    result = succeed("generate", "--model", model, *arguments, **options)
    assert result.stdout.endswith(b"\n")
    return result.stdout.decode()[:-1], result.stderr


def test_help_and_version():
    overview = succeed("--help").stdout.decode()
    assert overview == succeed("-h").stdout.decode()
    assert all(command in overview for command in COMMANDS)
    for command in COMMANDS:
        text = succeed(command, "--help").stdout.decode()
        assert f"Usage: reasoning-rpc {command} --model DIR" in text
        assert max(map(len, text.splitlines())) <= 100
        assert text == succeed(command, "-h").stdout.decode()
    for option in ["--version", "-V"]:
        assert succeed(option).stdout.decode().startswith("reasoning-rpc 0.")


def test_tokenize(text_model):
    # No ONNX Runtime is needed.
    nothing = {"RRPC_ONNXRUNTIME": "/nonexistent"}
    raw = "a 9 é👍<|end|>z"
    ids = [*of("a 9 é👍"), END, *of("z")]
    assert tokenize(text_model, "--text", raw, env=nothing) == json.dumps(ids, separators=(",", ":")) + "\n"
    assert json.loads(tokenize(text_model, input=raw)) == ids
    assert tokenize(text_model, "--ids", ",".join(map(str, ids))) == raw + "\n"
    assert tokenize(text_model, "--ids", "-", input=json.dumps(ids)) == raw + "\n"
    chat = json.loads(tokenize(text_model, "--chat", "--text", "hi<|end|>", "--system", "s"))
    # A message's content never becomes a control token: its text is spelled out.
    assert chat == [USER, *of("system: s\n"), USER, *of("user: hi<|end|>\na: ")]


def test_the_beginning_of_text(tmp_path):
    model = make_text_model(tmp_path / "model", add_bos=True)
    assert json.loads(tokenize(model, "--text", "a")) == [USER, *of("a")]
    assert json.loads(tokenize(model, "--text", "a", "--no-bos")) == of("a")
    assert generate(model, "--prompt", "a", "--raw", "--max-tokens", 1)["prompt_ids"] == [USER, *of("a")]


def test_prompts_are_what_tokenize_says(text_model, tmp_path):
    few = ["--max-tokens", 3, "--temperature", 0]
    chat = generate(text_model, "--prompt", "hi", "--system", "s", *few)
    raw = generate(text_model, "--prompt", "<|user|>hi", "--raw", *few)
    assert chat["prompt_ids"] == json.loads(tokenize(text_model, "--chat", "--text", "hi", "--system", "s"))
    assert raw["prompt_ids"] == [USER, *of("hi")]
    by_ids = generate(text_model, "--prompt-ids", ",".join(map(str, raw["prompt_ids"])), *few)
    assert (by_ids["tokens"], by_ids["text"]) == (raw["tokens"], raw["text"])
    file = tmp_path / "prompt"
    file.write_text("hi\n")
    from_file = generate(text_model, "--prompt-file", file, "--raw", *few)
    from_stdin = generate(text_model, "--prompt-file", "-", "--raw", *few, input="hi\n")
    assert from_file["prompt_ids"] == from_stdin["prompt_ids"] == of("hi\n")


def test_streamed_text_is_the_text(text_model):
    # A model of noise writes parts of characters, too.
    options = ["--prompt", "hello", "--seed", 5, "--temperature", 1, "--max-tokens", 600, "--interval", 64, "--ignore-eos"]
    text, stats = stream(text_model, *options)
    answer = generate(text_model, *options)
    assert answer["text"] == text
    assert "\ufffd" in text and "<|end|>" in text
    written = bytes(b for t in answer["tokens"] for b in ([ALPHABET[t]] if t < END else [b"<|end|>", b"<|user|>"][t - END]))
    assert text == written.decode(errors="replace")
    assert answer["stop_reason"] == "length" and answer["stats"]["seed"] == 5
    for line in ["prompt ", "answer ", "compression ", "cache ", "seed  "]:
        assert any(row.startswith(line) for row in stats.splitlines()), stats
    assert "600 tokens" in stats and "ended by: length" in stats and "\r" not in stats


def test_seeds(text_model):
    options = ["--prompt", "hello", "--temperature", 1, "--max-tokens", 40]
    first = generate(text_model, *options)
    again = generate(text_model, *options, "--seed", first["stats"]["seed"])
    other = generate(text_model, *options)
    assert again["tokens"] == first["tokens"]
    assert other["stats"]["seed"] != first["stats"]["seed"] and other["tokens"] != first["tokens"]


def test_stop_strings(text_model):
    options = ["--prompt", "hello", "--seed", 3, "--temperature", 1, "--max-tokens", 200, "--ignore-eos"]
    whole = generate(text_model, *options)
    # One token is one byte: a stop string of some characters is spread over tokens.
    stop = next(whole["text"][i : i + 4] for i in range(20, 190) if whole["text"][i : i + 4].isascii())
    cut = whole["text"].index(stop)
    answer = generate(text_model, *options, "--stop", "not to be found anywhere", "--stop", stop)
    assert answer["stop_reason"] == "stop"
    assert answer["text"] == whole["text"][:cut]
    assert answer["tokens"] == whole["tokens"][: len(answer["tokens"])]
    assert len(answer["tokens"]) < len(whole["tokens"])
    assert stream(text_model, *options, "--stop", stop)[0] == answer["text"]


def test_stop_tokens(text_model):
    options = ["--prompt", "hello", "--seed", 3, "--temperature", 1, "--max-tokens", 3000, "--interval", 64]
    past = generate(text_model, *options, "--ignore-eos")
    answer = generate(text_model, *options)
    assert END in past["tokens"] and past["stop_reason"] == "length"
    end = past["tokens"].index(END)
    assert answer["stop_reason"] == "eos"
    assert answer["tokens"] == past["tokens"][: end + 1], "the stop token is one of the tokens"
    # Control tokens are shown only where they are passed over.
    assert "<|end|>" not in answer["text"] and "<|end|>" in past["text"]
    assert past["text"].replace("<|user|>", "").startswith(answer["text"])


def test_a_model_without_text_answers_with_ids(tiny):
    options = ["--prompt-ids", "1,2,3", "--temperature", 0, "--max-tokens", 9]
    text, _ = stream(tiny, *options)
    assert [int(token) for token in text.split(" ")] == generate(tiny, *options)["tokens"]


def test_model_defaults_of_sampling(text_model, tmp_path):
    model = make_text_model(tmp_path / "model")
    manifest = json.loads((model / "manifest.json").read_text())
    manifest["generation"] = {"do_sample": False, "repetition_penalty": 1.25}
    (model / "manifest.json").write_text(json.dumps(manifest))
    defaults = inspect(model)["default_sampling"]
    assert (defaults["temperature"], defaults["repetition_penalty"]) == (0, 1.25)
    common = ["--prompt", "hello", "--max-tokens", 60, "--ignore-eos"]
    by_default = generate(model, *common)["tokens"]
    spelled_out = ["--temperature", 0, "--repetition-penalty", 1.25]
    assert by_default == generate(text_model, *common, *spelled_out)["tokens"]
    assert by_default != generate(model, *common, "--repetition-penalty", 1)["tokens"]
    assert inspect(text_model)["default_sampling"]["temperature"] == pytest.approx(0.6)


def test_a_reader_that_goes_away(text_model):
    process = start("generate", "--model", text_model, "--prompt", "hello", "--ignore-eos", "--interval", 64)
    assert process.stdout.read(10)
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr.read() == b""


def test_progress_is_for_terminals(text_model):
    seen = seen_on_a_terminal("generate", "--model", text_model, "--prompt", "x" * 1000, "--max-tokens", 3)
    total = len("user: \na: ") + 1 + 1000
    assert f"prefill 256/{total} tokens".encode() in seen and f"prefill {total}/{total}".encode() in seen
    assert b"\r\x1b[K" in seen


# A real model


def test_real_tokenizer(smollm2):
    cases = json.loads((GOLDEN / "smollm2/tokenizer_expected.json").read_text())["cases"]
    for case in cases:
        assert json.loads(tokenize(smollm2, input=case["text"])) == case["ids"], case["text"]
        if case["ids"]:
            assert tokenize(smollm2, "--ids", "-", input=json.dumps(case["ids"])) == case["decoded"] + "\n"


def test_real_template(smollm2):
    cases = json.loads((GOLDEN / "smollm2/chat_template_expected.json").read_text())["cases"]
    case = next(case for case in cases if case["name"] == "user_only")
    assert json.loads(tokenize(smollm2, "--chat", "--text", case["messages"][0]["content"])) == case["ids"]


def test_real_text(smollm2):
    options = ["--prompt", "Tell me about the sea.", "--seed", 11, "--max-tokens", 48, "--interval", 32, "--window", 8]
    answer = generate(smollm2, *options)
    text, _ = stream(smollm2, *options)
    assert answer["text"] == text and text
    assert answer["stats"]["compressions"] == 1
    assert json.loads(tokenize(smollm2, "--chat", "--text", "Tell me about the sea.")) == answer["prompt_ids"]
    # From the middle of a word to the middle of the next.
    stop = text[len(text) // 2 - 3 :][:6]
    cut = generate(smollm2, *options, "--stop", stop)
    assert cut["stop_reason"] == "stop"
    assert cut["text"] == text[: text.index(stop)]


@pytest.mark.parametrize("output", ["text", "json"])
def test_ctrl_c(smollm2, output):
    options = ["--prompt", "Tell me a long story.", "--temperature", 0, "--ignore-eos"]
    process = start("generate", "--model", smollm2, "--output", output, *options, stderr=subprocess.PIPE)
    first = b""
    if output == "text":
        first = process.stdout.read(1)
    else:
        # Nothing is printed until the end; the signal is caught from before the first token.
        wait_for_handler(process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    if output == "text":
        assert (first + out).endswith(b"\n") and b"ended by: cancelled" in err
    else:
        answer = json.loads(out)
        assert answer["stop_reason"] == "cancelled" and err == b""
        assert len(answer["tokens"]) < 8000
        assert answer["stats"]["decode_tokens"] in (len(answer["tokens"]) - 1, len(answer["tokens"]), 0)


def test_ctrl_c_while_opening_ends_the_program(smollm2):
    ours, theirs = os.pipe()
    process = start("generate", "--model", smollm2, "--prompt-file", "-", stdin=ours)
    process.send_signal(signal.SIGINT)
    os.close(theirs)
    os.close(ours)
    assert process.wait(timeout=60) == -signal.SIGINT
    assert process.stdout.read() == b""


def wait_for_handler(process):
    """Until the program catches SIGINT."""
    bit = 1 << (signal.SIGINT - 1)
    while process.poll() is None:
        status = dict(line.split(":", 1) for line in open(f"/proc/{process.pid}/status"))
        if int(status["SigCgt"], 16) & bit:
            return
    raise AssertionError(process.stderr.read())
