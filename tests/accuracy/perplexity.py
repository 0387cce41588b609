"""What compression costs in perplexity, beside figures that another implementation gave (float32 on both sides).

    perplexity.py --benchmarks DIR --models DIR [--only WORD ...] [--program FILE]

DIR/perplexity/expected.json names texts, policies and ratios; the text TEXT.MODEL lies beside it as TEXT.MODEL.json,
token ids. Its model is --models DIR/MODEL-fp32, an export with fp32 weights. A row is the mean negative log-likelihood
of the tokens behind the first compression, less that with the whole cache. --only takes the rows that contain every
WORD. Exits with 1 if a figure is further from the expected one than 5e-4, and fails if a file is absent.
"""

import argparse
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOLERANCE = 5e-4
POLICIES = {
    "rpc layer": ["--policy", "rpc", "--aggregation", "layer"],
    "rpc kv_head": ["--policy", "rpc", "--aggregation", "kv_head"],
}


def nll(program, model, ids, prompt_tokens, policy):
    command = [
        program, "perplexity", "--model", model, "--ids", ids, "--prompt-tokens", prompt_tokens,
        "--cache-dtype", "fp32", "--output", "json", *policy,
    ]  # fmt: skip
    run = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, check=True)
    return json.loads(run.stdout)["nll"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmarks", type=pathlib.Path, required=True)
    parser.add_argument("--models", type=pathlib.Path, required=True)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--program", type=pathlib.Path, default=ROOT / "target/release/reasoning-rpc")
    options = parser.parse_args()

    folder = options.benchmarks / "perplexity"
    expected = json.loads((folder / "expected.json").read_text())
    interval, window = expected["P"], expected["R"]
    schedule = ["--interval", interval, "--window", window]
    worst, rows = 0.0, 0
    print(f"{'text.model':<24} {'policy':<16} {'c':>2} {'expected':>9} {'found':>9} {'apart':>9}")

    def row(text, policy, ratio, expected, found):
        nonlocal worst, rows
        worst, rows = max(worst, abs(found - expected)), rows + 1
        miss = "" if abs(found - expected) <= TOLERANCE else "  <--"
        apart = f"{found - expected:9.5f}"
        print(f"{text:<24} {policy:<16} {ratio:>2} {expected:9.4f} {found:9.4f} {apart}{miss}", flush=True)

    for text, figures in expected["texts"].items():
        wanted = [
            (policy, ratio, figure)
            for policy, ratios in figures["nll_minus_full"].items()
            for ratio, figure in sorted(ratios.items())
            if all(word in f"{text} {policy} {ratio}" for word in options.only)
        ]
        if not wanted:
            continue
        model, ids = options.models / f"{text.split('.')[1]}-fp32", folder / f"{text}.json"
        for needed in (options.program, model / "manifest.json", ids):
            if not needed.exists():
                sys.exit(f"{needed}: expected a file, found none")

        def behind(policy):
            """The mean over the tokens whose predictions came after the first compression."""
            found = nll(options.program, model, ids, expected["prompt_tokens"], policy)
            found = found[interval + window + 1 :]
            assert len(found) == figures["n"], f"{text}: expected {figures['n']} tokens, found {len(found)}"
            return sum(found) / len(found)

        whole = behind(["--policy", "none"])
        row(text, "none", "", figures["full_nll_after_first_compression"], whole)
        for policy, ratio, figure in wanted:
            given = [*POLICIES.get(policy, ["--policy", policy]), *schedule, "--ratio", ratio.removeprefix("c")]
            row(text, policy, ratio, figure, behind(given) - whole)
    print(f"{rows} figures, at most {worst:.5f} apart")
    return int(worst > TOLERANCE or rows == 0)


if __name__ == "__main__":
    sys.exit(main())
