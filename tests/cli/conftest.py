"""What the tests of the program share: where it and its data lie, and how it is run."""

import hashlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/abi"))

from text_model import byte_letter, byte_level_bpe  # noqa: E402

GOLDEN = Path(os.environ.get("RRPC_GOLDEN") or ROOT / "tests/golden")
MODELS = Path(os.environ.get("RRPC_MODELS") or ROOT / "models")
PROGRAM = Path(os.environ.get("RRPC_PROGRAM") or ROOT / "target/release/reasoning-rpc")
TIMEOUT = 300

ENVIRONMENT = {
    "RRPC_ONNXRUNTIME": str(ROOT / "third_party/onnxruntime/libonnxruntime.so"),
    **os.environ,
}

# 94 bytes that a tiny tokenizer has one token for: ASCII without 11 of its signs, and the bytes of é and 👍.
ALPHABET = [b for b in b"\n" + bytes(range(32, 127)) if b not in b'"#$%&*@\\^`~'] + [
    *"é👍".encode(),
    0xFF,
    0xE2,
    0x82,
]
END, USER = 94, 95
TEMPLATE = "{% for m in messages %}<|user|>{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}a: {% endif %}"


def seen_on_a_terminal(*arguments):
    """Runs to the end with standard error on a terminal: the running program, what stood there."""
    ours, theirs = pty.openpty()
    process = start(*arguments, stderr=theirs)
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end was closed
            break
        if not part:
            break
        seen += part
    os.close(ours)
    process.stdout.read()
    assert process.wait(timeout=60) == 0
    return seen


def start(*arguments, env=None, **options):
    """A running program, with Ctrl-C in its normal meaning."""
    assert PROGRAM.is_file(), f"{PROGRAM} is missing: run `make build`"
    return subprocess.Popen(
        [PROGRAM, *map(str, arguments)],
        env={**ENVIRONMENT, **(env or {})},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def run(*arguments, input=None, env=None):
    """A finished program: return code, output as bytes, errors as text."""
    stdin = subprocess.DEVNULL if input is None else subprocess.PIPE
    process = start(*arguments, env=env, stdin=stdin)
    try:
        out, err = process.communicate(
            input.encode() if isinstance(input, str) else input, timeout=TIMEOUT
        )
    finally:
        process.kill()
    return subprocess.CompletedProcess(arguments, process.returncode, out, err.decode())


def succeed(*arguments, **options):
    """A program that succeeded."""
    result = run(*arguments, **options)
    assert result.returncode == 0, result.stderr
    return result


def generate(model, *arguments, **options):
    """The object that `generate --output json` prints."""
    result = succeed("generate", "--model", model, "--output", "json", *arguments, **options)
    assert result.stderr == ""
    assert result.stdout.count(b"\n") == 1 and result.stdout.endswith(b"\n")
    return json.loads(result.stdout)


def inspect(model, *arguments):
    """The object that `inspect --output json` prints."""
    return json.loads(succeed("inspect", "--model", model, "--output", "json", *arguments).stdout)


def fail(code, *arguments, expected=(), **options):
    """One line about a failure, which holds every text of `expected`."""
    result = run(*arguments, **options)
    assert result.returncode == code, (result.returncode, result.stderr)
    assert result.stdout == b""
    assert result.stderr.startswith("reasoning-rpc: error: ")
    assert result.stderr.count("\n") == 1 and result.stderr.endswith("\n"), result.stderr
    for text in expected:
        assert text in result.stderr, result.stderr
    return result.stderr


def find_model(name):
    """An exported model."""
    folder = MODELS / name
    assert (folder / "manifest.json").is_file(), f"{folder} is missing: run `make test-models`"
    return folder


def seal(folder):
    """Brings a copied folder's manifest up to date with its files."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {
        path.name: {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(folder.iterdir())
        if path.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def tokenizer_json():
    """A byte-level tokenizer of 96 ids, two of them control tokens."""
    assert len(ALPHABET) == END
    vocabulary = {byte_letter(byte): index for index, byte in enumerate(ALPHABET)}
    return byte_level_bpe(vocabulary, {END: "<|end|>", USER: "<|user|>"})


def make_text_model(folder, template=TEMPLATE, stop=(END,), add_bos=False):
    """A tiny model that reads and writes text."""
    shutil.copytree(find_model("golden/qwen2_p32-cached"), folder)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["tokens"] = {"bos": USER, "eos": END, "add_bos": add_bos, "stop": list(stop)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    seal(folder)
    return folder


@pytest.fixture(scope="session")
def text_model(tmp_path_factory):
    return make_text_model(tmp_path_factory.mktemp("models") / "text")


@pytest.fixture(scope="session")
def tiny():
    return find_model("golden/qwen2_p32-cached")


@pytest.fixture(scope="session")
def smollm2():
    return find_model("smollm2-int4")


@pytest.fixture
def copied(tiny, tmp_path):
    """A model folder to spoil."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))
