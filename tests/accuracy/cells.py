"""Figures of texts that were read as if they had been written, kept one to a file: a run that was broken off goes on.

A cell is one policy on one text by one model. It keeps, for blocks of 128 tokens behind the first compression, the
sums of what the cache's compression added to the negative log-likelihood and of KL(whole cache || compressed).
Standard errors are over these blocks, each the difference of two runs on the same tokens.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROMPT_TOKENS = 64
BLOCK = 128
# They drop an entry at every token, and are read together.
ROLLING = ("h2o", "tova")


@dataclasses.dataclass(frozen=True)
class Cell:
    model: str
    text: str
    policy: str  # As in --policies, the ratio included.
    interval: int = 256
    window: int = 32
    cache: str = "fp32"
    weights: str = "fp32"

    def path(self, results):
        weights = "" if self.weights == "fp32" else f"-{self.weights}-weights"
        setting = f"P{self.interval}-R{self.window}-{self.cache}{weights}"
        return results / "texts" / self.model / self.text / setting / f"{self.policy.replace(':', ',')}.json"

    def read(self, results):
        path = self.path(results)
        return json.loads(path.read_text()) if path.exists() else None

    def __str__(self):
        return f"{self.model} {self.text} P{self.interval} {self.cache} {self.policy}"


def arguments(description):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmarks", type=pathlib.Path, required=True, help="the folder of the benchmarks' files")
    parser.add_argument("--models", type=pathlib.Path, required=True, help="the folder of exported models")
    parser.add_argument("--results", type=pathlib.Path, default=ROOT / "target/accuracy", help="[target/accuracy]")
    parser.add_argument("--only", nargs="*", default=[], help="run only what contains every word")
    parser.add_argument("--print", action="store_true", help="run nothing: what is absent is printed as not run")
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    parser.add_argument("--program", type=pathlib.Path, default=ROOT / "target/release/reasoning-rpc")
    return parser


def need(*paths):
    for path in paths:
        if not path.exists():
            sys.exit(f"{path}: expected a file, found none")


def run(cells, options):
    """Runs what is missing of cells, those of one text, setting and ratio in one go, in the order of the first."""
    groups = {}
    for cell in cells:
        if cell.read(options.results) is None and all(word in str(cell) for word in options.only):
            name, *rest = cell.policy.split(":")
            ratio = "rolling" if name in ROLLING else [word for word in rest if word.startswith("ratio=")][0]
            key = (cell.model, cell.text, cell.interval, cell.window, cell.cache, cell.weights, ratio)
            groups.setdefault(key, {})[cell] = None
    for index, group in enumerate(groups.values()):
        print(f"{index + 1}/{len(groups)}: {len(group)} x {next(iter(group))}", file=sys.stderr, flush=True)
        run_group(list(group), options)


def run_group(cells, options):
    one = cells[0]
    model = options.models / f"{one.model}-{one.weights}"
    need(options.program, model / "manifest.json")
    command = [
        options.program, "perplexity", "--model", model, *text_of(one, options), "--prompt-tokens", PROMPT_TOKENS,
        "--interval", one.interval, "--window", one.window, "--cache-dtype", one.cache, "--threads", options.threads,
        "--policies", ",".join(cell.policy for cell in cells), "--against", "none", "--output", "json",
    ]  # fmt: skip
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE)
    if done.returncode:
        sys.exit(done.returncode)
    report = json.loads(done.stdout)
    first = one.interval + one.window + 1

    def blocks(values):
        behind = values[first:]
        return [round(sum(behind[at : at + BLOCK]), 5) for at in range(0, len(behind), BLOCK)]

    for cell, found in zip(cells, report["policies"]):
        added = [nll - full for nll, full in zip(found["nll"], report["full_nll"])]
        behind = report["full_nll"][first:]
        kept = {
            "tokens": len(behind),
            "full_nll": round(sum(behind) / len(behind), 6),
            "compressions": found["compressions"],
            "cache_peak_bytes": found["cache_peak_bytes"],
            "nll_minus_full": blocks(added),
            "kl": blocks(found["kl"]),
        }
        path = cell.path(options.results)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(kept) + "\n")
        part.rename(path)


# Texts that are two of the benchmarks' files, one behind the other, and of how many tokens at most.
JOINED = {
    "novel_8k": (("novel_ch3", "novel_late"), 8192),  # SmolLM2's context
    "novel_12k": (("novel_ch3", "novel_late"), 12000),
    "tutorial_rust": (("tutorial", "rust_source"), 12000),
}


def text_of(cell, options):
    """The text's ids for the model; what is there for SmolLM2 alone goes by way of its characters."""
    options.results.mkdir(parents=True, exist_ok=True)
    parts, most = JOINED.get(cell.text, ((cell.text,), 3200))
    ids = [options.benchmarks / "perplexity" / f"{part}.{cell.model}.json" for part in parts]
    if parts == (cell.text,) and ids[0].exists():
        return ["--ids", ids[0]]
    if cell.model == "smollm2":
        need(*ids)
        joined = options.results / f"{cell.text}.{cell.model}.json"
        joined.write_text(json.dumps([token for path in ids for token in json.loads(path.read_text())][:most]))
        return ["--ids", joined]
    ids = [path.with_name(f"{part}.smollm2.json") for part, path in zip(parts, ids)]
    tokenizer = options.models / "smollm2-fp32/tokenizer.json"
    need(*ids, tokenizer)
    text = options.results / f"{cell.text}.txt"
    text.write_bytes(b"".join(characters(json.loads(path.read_text()), tokenizer) for path in ids))
    return ["--text", text, "--max-tokens", most]


def characters(ids, tokenizer):
    """The bytes of a byte-level BPE's tokens."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}
    vocabulary = json.loads(tokenizer.read_text())["model"]["vocab"]
    names = {number: name for name, number in vocabulary.items()}
    text = bytes(table[character] for number in ids for character in names[number])
    return text.decode(errors="ignore").encode()


def counts(cell):
    """Tokens of each block."""
    whole, rest = divmod(cell["tokens"], BLOCK)
    return [BLOCK] * whole + ([rest] if rest else [])


def ratio(tops, bottoms):
    """The ratio of two sums over the same blocks, and its standard error (the delta method's)."""
    found = sum(tops) / sum(bottoms)
    spread = sum((top - found * bottom) ** 2 for top, bottom in zip(tops, bottoms))
    return found, math.sqrt(spread * len(tops) / (len(tops) - 1)) / abs(sum(bottoms))


def mean(cell, what):
    """The mean over tokens, and its standard error."""
    return ratio(cell[what], counts(cell))


def quantile(blocks):
    """Student's 97.5% quantile, to 1% from 10 blocks on (Cornish and Fisher's first term)."""
    z = 1.959964
    return z + (z**3 + z) / (4 * (blocks - 1))


def table(head, rows):
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows]) + "\n"
