"""`python -m small_reasoners train` and `python -m small_reasoners curve`."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from pathlib import Path

# One thread: the same sums on every machine, and cores left for others. Read when JAX is imported.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

from .problems import GISTS

# What is different in the second half of the training.
VARIANTS = {"plain": {}, "dropout": {"drop": 0.3}, "lightthinker": {"gists": GISTS}}
TOLERANCE = 0.05


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="small_reasoners", description=sys.modules[__package__].__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("train", help="trains the models, exports them, and writes problems")
    command.add_argument("out", type=Path, help="folder; training goes on from the checkpoints that it has")
    command.add_argument("--seed", type=int, default=1)
    command.add_argument("--variants", nargs="+", choices=VARIANTS, default=["plain", "dropout"], help="[plain dropout]")
    command.add_argument("--steps", type=int, help="training steps of each model [the plan's]")
    command.add_argument("--lines", type=int, help="the most lines of a problem in training [the plan's]")
    command.add_argument("--tokens", type=int, help="tokens of a training step [the plan's]")
    command.add_argument("--problems", type=int, default=200, help="problems of each length [200]")
    command = commands.add_parser("curve", help="accuracy against trace length, compressions and policy")
    command.add_argument("out", type=Path, help="what train wrote")
    command.add_argument("--program", type=Path, default=Path("target/release/reasoning-rpc"))
    command.add_argument("--compressions", type=int, nargs="+", default=[1, 2, 4, 8])
    command.add_argument("--ratio", type=int, default=4)
    command.add_argument("--window", type=int, default=8)
    command.add_argument("--limit", type=int, help="problems of each length [all]")
    options = parser.parse_args(arguments)
    if options.command == "train":
        return train(options)
    from .curve import draw

    return draw(options)


def train(options: argparse.Namespace) -> int:
    from reasoning_rpc_export.cli import main as export

    from .checkpoint import write_checkpoint
    from .training import Plan
    from .training import train as run

    options.out.mkdir(parents=True, exist_ok=True)
    named = {name: getattr(options, name) for name in ("steps", "lines", "tokens")}
    changes = {name: value for name, value in named.items() if value}
    for name in options.variants:
        say = lambda text, name=name: print(f"{name}: {text}", flush=True)
        plan = Plan(seed=options.seed, **VARIANTS[name], **changes)
        write_problems(options.out, plan.lines, options.problems)
        weights = run(plan, options.out / f"{name}.npz", options.out / "trunk.npz", say)
        write_checkpoint(options.out / f"{name}-huggingface", weights, plan.shape)
        code = export([str(options.out / f"{name}-huggingface"), str(options.out / name), "--weights", "fp32"])
        if code:
            return code
    return 0


def lengths(lines: int) -> dict[int, int]:
    """Characters of the reasoning of about as many lines: half, three quarters and all of those trained on."""
    return {int(round(12.3 * few - 24, -1)): few for few in (lines / 2, lines * 3 / 4, lines)}


def write_problems(out: Path, most_lines: int, count: int) -> None:
    """length-N.jsonl for each length: problems whose reasoning is as long, to 5%; none was trained on but by chance."""
    from .problems import make_problem

    for length, lines in lengths(most_lines).items():
        generator = random.Random(f"problems {length}")
        found: list[str] = []
        while len(found) < count:
            problem = make_problem(generator, min(most_lines, int(lines) + generator.randint(0, 1)))
            if abs(len(problem.reasoning) - length) <= TOLERANCE * length:
                fields = {"id": len(found) + 1, "prompt": problem.prompt, "answer": problem.answer, "checker": "math"}
                found.append(json.dumps(fields) + "\n")
        (out / f"length-{length}.jsonl").write_text("".join(found))


if __name__ == "__main__":
    sys.exit(main())
