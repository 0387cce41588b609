"""Whatever is wrong: one line that names what was expected and what was found, and nothing on standard output."""

import json
import shutil
import subprocess

import pytest
from conftest import PROGRAM, fail, find_model, generate, inspect, make_text_model, seal

IDS = ["--prompt-ids", "1,2,3"]


def generate_fails(code, model, *arguments, expected, **options):
    if not any(str(a).startswith("--prompt") for a in arguments):
        arguments = [*IDS, *arguments]
    return fail(code, "generate", "--model", model, *arguments, expected=expected, **options)


# The command line


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ([], ["expected a command (generate, perplexity, eval, analyze, sweep, tokenize, inspect, trace)", "found nothing"]),
        (["frobnicate"], ["expected a command", 'found "frobnicate"']),
        (["--frobnicate"], ["expected a command", "found --frobnicate"]),
        (["-x"], ["expected a command", "found -x"]),
        (["generate"], ["expected --model DIR", "found none"]),
        (["tokenize"], ["expected --model DIR", "found none"]),
        (["inspect"], ["expected --model DIR", "found none"]),
        (["inspect", "--model"], ["--model: expected DIR", "found nothing"]),
    ],
)
def test_commands(arguments, expected):
    fail(2, *arguments, expected=["--help`", *expected])


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--frobnicate"], ["found --frobnicate"]),
        (["--temperature=0", "stray"], ['found "stray"']),
        (["-n", "3"], ["found -n"]),
        (["--raw=yes"], ["--raw", "expected no value", '"yes"']),
        (["--seed"], ["--seed: expected N", "found nothing"]),
        (["--seed", "1", "--seed", "2"], ["--seed: expected once", "found twice"]),
        (["--seed", "-1"], ["--seed: expected a whole number", '"-1"']),
        (["--seed", str(2**64)], ["--seed: expected a whole number below 2^64", str(2**64)]),
        (["--max-tokens", "0"], ["--max-tokens: expected a whole number, 1 or more", '"0"']),
        (["--threads", "many"], ["--threads: expected a whole number", '"many"']),
        (["--temperature", "-0.5"], ["--temperature: expected", '"-0.5"']),
        (["--temperature", "nan"], ["--temperature: expected", '"nan"']),
        (["--top-k", "1.5"], ["--top-k: expected", '"1.5"']),
        (["--top-p", "1.5"], ["--top-p: expected a number from 0 to 1", '"1.5"']),
        (["--min-p", "2"], ["--min-p: expected a number from 0", '"2"']),
        (["--repetition-penalty", "0"], ["--repetition-penalty: expected a number above 0", '"0"']),
        (["--stop", ""], ["--stop: expected at least one character", "found none"]),
        (["--budget", "3 bananas"], ["--budget: expected bytes", '"3 bananas"']),
        (["--output", "xml"], ["--output: expected text or json", '"xml"']),
        (["--policy", "h2"], ["--policy: expected none or rpc or snapkv", '"h2"']),
        (["--cache-dtype", "int4"], ["--cache-dtype: expected fp32 or fp16 or bf16 or int8", '"int4"']),
        (["--aggregation", "head"], ["--aggregation: expected layer or kv_head", '"head"']),
        (["--policy", "rpc", "--pooling", "min"], ["--pooling: expected avg or max or none", '"min"']),
        (["--policy", "rpc", "--softmax", "window"], ["--softmax: expected candidates or all", '"window"']),
        (["--history", "1.5"], ["--history: expected 0 to 1", '"1.5"']),
        (["--policy", "rpc", "--redundancy", "-1"], ["--redundancy: expected 0 to 1", '"-1"']),
        (["--policy", "rpc", "--value-norms", "1"], ["--value-norms: expected no or yes", '"1"']),
        (["--policy", "rpc", "--kernel", "4"], ["kernel: expected an odd width", "found 4"]),
        (["--entries", "0"], ["entries: expected 1 to", "found 0"]),
        (["--bytes", "1K"], ["--bytes: expected at least", "found 1024"]),
        (["--ratio", "4", "--entries", "9"], ["one of --ratio, --entries and --bytes", "found --ratio and --entries"]),
        (["--ratio", "0"], ["ratio: expected at least 1", "found 0"]),
        (["--interval", "10", "--window", "2"], ["multiple of the ratio 4", "found 10"]),
        (["--interval", "32", "--window", "32"], ["window: expected 1 to 31", "interval 32", "found 32"]),
        (["--window", "0"], ["window: expected 1 to", "found 0"]),
        # What no policy would read.
        (["--kernel", "3"], ["--kernel: expected with --policy rpc", "found no --policy"]),
        (["--policy", "random", "--softmax", "all"], ["--softmax: expected with --policy rpc", "found random"]),
        (["--policy", "rpc", "--queries", "stored"], ["--queries: expected with --policy lookahead or lookahead-merge", "found rpc"]),
        (["--policy", "lookahead", "--similarity", "cosine"], ["--similarity: expected with --policy lookahead-merge", "found lookahead"]),
        (["--policy", "lookahead-merge", "--similarity", "l2"], ["--similarity: expected logits or cosine", '"l2"']),
        (["--policy", "none", "--aggregation", "layer"], ["--aggregation: expected with --policy rpc or snapkv or", "found none"]),
        (["--gists", "3"], ["--gists: expected with --policy lightthinker", "found no --policy"]),
    ],
)  # fmt: skip
def test_options(tiny, arguments, expected):
    generate_fails(2, tiny, *arguments, expected=["reasoning-rpc generate --help", *expected])


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ([], ["expected one of --prompt, --prompt-file and --prompt-ids", "found none"]),
        (["--prompt", "a", "--prompt-ids", "1"], ["expected one of", "found --prompt and --prompt-ids"]),
        (["--prompt", ""], ["--prompt: expected at least one character", "empty"]),
        (["--prompt", "", "--raw"], ["--prompt: expected at least one character", "empty"]),
        (["--prompt-file", "-"], ["--prompt-file: expected at least one character", "empty"]),
        (["--prompt-ids", ""], ["--prompt-ids: expected token ids", "found none"]),
        (["--prompt-ids", "1,two"], ["--prompt-ids: expected token ids", '"two"']),
        (["--prompt-ids", "1,,2"], ["--prompt-ids: expected token ids", '""']),
        (["--prompt-ids", "-5"], ["--prompt-ids: expected token ids", '"-5"']),
        (["--prompt-ids", "1", "--raw"], ["--raw: expected a prompt of text", "found --prompt-ids"]),
        (["--prompt", "a", "--raw", "--system", "b"], ["--system: expected without --raw", "found both"]),
    ],
)
def test_prompts(tiny, arguments, expected):
    fail(2, "generate", "--model", tiny, *arguments, expected=expected)


def test_a_prompt_file(tiny, tmp_path):
    absent = tmp_path / "absent"
    generate_fails(1, tiny, "--prompt-file", absent, expected=[str(absent), "No such file"])
    latin = tmp_path / "latin"
    latin.write_bytes(b"caf\xe9")
    generate_fails(1, tiny, "--prompt-file", latin, expected=[str(latin), "expected UTF-8", "at 3"])


def test_tokenize(tiny, text_model):
    def tokenize(code, model, *arguments, expected):
        fail(code, "tokenize", "--model", model, *arguments, expected=expected)

    tokenize(2, tiny, "--ids", "1", "--text", "a", expected=["--ids: expected without --text", "found both"])
    tokenize(2, tiny, "--text", "a", "--system", "b", expected=["--system: expected with --chat"])
    tokenize(2, tiny, "--ids", "one", expected=["--ids: expected token ids", '"one"'])
    tokenize(1, tiny, "--text", "a", expected=["no tokenizer.json", "token ids only"])
    tokenize(1, text_model, "--ids", "96", expected=["no token has the id 96", "has 96 ids"])


def test_inspect(tiny):
    def inspect_fails(code, model, *arguments, expected):
        fail(code, "inspect", "--model", model, *arguments, expected=expected)

    long = ["--prompt-tokens", 4000, "--max-tokens", 97]
    inspect_fails(2, tiny, *long, expected=["expected at most 4096 together", "found 4000 and 97"])
    inspect_fails(2, tiny, "--prompt-tokens", 0, expected=["--prompt-tokens: expected", '"0"'])
    inspect_fails(2, tiny, "--kernel", 7, expected=["found --kernel"])
    inspect_fails(2, tiny, "--policy", "lightthinker", expected=["expected one with a peak that is known before"])
    portable = find_model("golden/qwen2_p32-portable")
    half = ["--cache-dtype", "fp16"]
    inspect_fails(1, portable, *half, expected=["--cache-dtype: expected fp32", "portable", "found fp16"])


# The model folder


def test_a_missing_model(copied, tmp_path):
    absent = tmp_path / "absent"
    for command in [["generate", *IDS], ["tokenize", "--text", "a"], ["inspect"]]:
        fail(1, *command, "--model", absent, expected=[str(absent), "No such file"])
    (copied / "model.onnx.data").unlink()
    generate_fails(1, copied, expected=["model.onnx.data", "No such file"])
    (copied / "manifest.json").unlink()
    generate_fails(1, copied, expected=["manifest.json", "No such file"])


def test_a_truncated_model(copied):
    data = copied / "model.onnx.data"
    size = data.stat().st_size
    data.write_bytes(data.read_bytes()[:-1000])
    generate_fails(1, copied, expected=[f"model.onnx.data: expected {size} bytes", f"found {size - 1000}"])
    for file in ["model.onnx", "manifest.json"]:
        path = copied / file
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        generate_fails(1, copied, expected=[file])


@pytest.mark.parametrize("file", ["model.onnx", "model.onnx.data"])
def test_an_edited_model(copied, file):
    bytes = bytearray((copied / file).read_bytes())
    bytes[len(bytes) // 2] ^= 1
    (copied / file).write_bytes(bytes)
    expected = json.loads((copied / "manifest.json").read_text())["files"][file]["sha256"]
    generate_fails(1, copied, expected=[f"{file}: expected sha256 {expected}, found "])


def test_another_manifest(copied):
    path = copied / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "graph_contract": 3}))
    generate_fails(1, copied, expected=["expected graph contract version 1 to 2", "found 3"])
    path.write_text(json.dumps({**manifest, "format": "gguf"}))
    generate_fails(1, copied, expected=['expected format "reasoning-rpc-model"', 'found "gguf"'])
    path.write_text("[1, 2]")
    generate_fails(1, copied, expected=["manifest.json"])


def test_a_graph_that_is_none(copied):
    (copied / "model.onnx").write_bytes(b"not a graph")
    seal(copied)
    generate_fails(1, copied, expected=["model.onnx"])


# ONNX Runtime


def test_no_onnx_runtime(tiny, tmp_path):
    absent = tmp_path / "libonnxruntime.so"
    wanted = [f"expected its library at {absent}", "found none"]
    generate_fails(1, tiny, "--onnxruntime", absent, expected=["ONNX Runtime", *wanted])
    generate_fails(1, tiny, env={"RRPC_ONNXRUNTIME": str(absent)}, expected=["ONNX Runtime", *wanted])
    absent.write_text("not a library")
    generate_fails(1, tiny, "--onnxruntime", absent, expected=["ONNX Runtime", str(absent)])
    alone = tmp_path / "bin/reasoning-rpc"
    alone.parent.mkdir()
    shutil.copy(PROGRAM, alone)
    process = subprocess.run(
        [alone, "generate", "--model", tiny, *IDS], env={}, capture_output=True, text=True
    )
    assert process.returncode == 1 and process.stdout == ""
    assert f"expected libonnxruntime.so in {alone.parent}" in process.stderr
    assert "found none" in process.stderr


OLD = """
#include <stdint.h>
struct OrtApiBase { const void *(*GetApi)(uint32_t); const char *(*GetVersionString)(void); };
static const void *api(uint32_t version) { (void)version; return 0; }
static const char *version(void) { return "1.20.0"; }
const struct OrtApiBase *OrtGetApiBase(void) {
    static const struct OrtApiBase base = {api, version};
    return &base;
}
"""


def test_an_old_onnx_runtime(tiny, tmp_path):
    source, library = tmp_path / "old.c", tmp_path / "libonnxruntime.so"
    source.write_text(OLD)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    generate_fails(1, tiny, "--onnxruntime", library, expected=["expected version >= '1.31", "'1.20.0'"])


def test_a_simd_path_that_there_is_not(tiny):
    generate_fails(1, tiny, env={"RRPC_SIMD": "neon"}, expected=["neon", "avx2"])


# What a model cannot do


def test_a_token_out_of_range(tiny):
    generate_fails(1, tiny, "--prompt-ids", "95,96", expected=["token id: expected 0 to 95", "found 96"])


def test_a_prompt_beyond_the_context(tiny):
    prompt = ",".join(["1"] * 5000)
    needs = ["needs 5000 tokens", "context has 4096"]
    generate_fails(1, tiny, "--prompt-ids", prompt, expected=needs)


def test_a_budget_that_is_too_small(tiny):
    options = ["--max-tokens", 900, "--interval", 64, "--window", 8]
    shape = ["--interval", 64, "--window", 8, "--prompt-tokens", 3, "--max-tokens", 900]
    answer = inspect(tiny, *shape)["answer"]
    peak = answer["peak_compressed"]["bytes"]
    generate(tiny, *IDS, *options, "--budget", peak)
    generate_fails(
        1, tiny, *options, "--budget", peak - 1, expected=[f"{peak} more bytes needed", "bytes available"]
    )
    full = answer["peak_uncompressed"]["bytes"]
    generate_fails(
        1, tiny, *options, "--policy", "none", "--budget", peak,
        expected=[f"{full} more bytes needed", f"{peak} bytes available"],
    )  # fmt: skip
    generate_fails(1, tiny, "--prompt-ids", ",".join(["1"] * 400), "--budget", "100K", expected=["bytes needed"])


def test_the_portable_flavour_takes_fp32_only():
    portable = find_model("golden/qwen2_p32-portable")
    generate_fails(1, portable, "--cache-dtype", "fp16", expected=["expected fp32", "portable"])


def test_text_for_a_model_of_ids(tiny):
    for arguments in (["--prompt", "a"], ["--prompt", "a", "--raw"], [*IDS, "--stop", "a"]):
        generate_fails(1, tiny, *arguments, expected=["no tokenizer.json", "token ids only"])


# Templates

LOOPS = {
    "for": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_template_that_runs_for_ever(tmp_path, name):
    model = make_text_model(tmp_path / "model", template=LOOPS[name])
    generate_fails(1, model, "--prompt", "hi", expected=["chat template"])
    generate(model, "--prompt", "hi", "--raw", "--max-tokens", 2)


def test_a_template_that_refuses(tmp_path):
    template = "{{ raise_exception('no system message') }}"
    model = make_text_model(tmp_path / "model", template=template)
    generate_fails(1, model, "--prompt", "hi", expected=["chat template", "no system message"])


def test_no_template(tmp_path):
    model = make_text_model(tmp_path / "model", template=None)
    generate_fails(1, model, "--prompt", "hi", expected=["no chat_template.jinja", "raw text only"])
    generate(model, "--prompt", "hi", "--raw", "--max-tokens", 2)
