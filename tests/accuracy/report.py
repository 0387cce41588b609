"""Puts the tables into docs/accuracy.md, out of results that are there, and keeps these beside it.

    report.py --benchmarks DIR --models DIR [--results DIR]

Runs nothing: texts.py, tasks.py and perplexity.py do. In the page, what stands between <!-- SCRIPT ARGUMENTS --> and
<!-- end --> becomes what that command prints. docs/measurements/accuracy gets the figures of every cell and, of every
answer, whether it was right, its tokens, whether it ended, its compressions and its peak.
"""

import json
import pathlib
import re
import subprocess
import sys

import cells
import tasks

PAGE = cells.ROOT / "docs/accuracy.md"
KEPT = cells.ROOT / "docs/measurements/accuracy"


def printed(command, options):
    script, *words = command.split()
    done = subprocess.run(
        [sys.executable, pathlib.Path(__file__).with_name(script), *words, "--print"]
        + [f"--{name}={getattr(options, name)}" for name in ("benchmarks", "models", "results")],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    # perplexity.py exits with 1 if a figure is apart: its table says so.
    if not done.stdout:
        sys.exit(f"{command}: expected a table, found nothing")
    return f"```text\n{done.stdout}```" if script == "perplexity.py" else done.stdout.strip()


def main() -> int:
    options = cells.arguments(__doc__).parse_args()
    block = re.compile(r"(<!-- (\w+\.py[^>]*) -->\n).*?(<!-- end -->)", re.DOTALL)
    text = block.sub(lambda found: f"{found[1]}{printed(found[2], options)}\n{found[3]}", PAGE.read_text())
    PAGE.write_text(text)

    KEPT.mkdir(parents=True, exist_ok=True)
    folder = options.results / "texts"
    paths = sorted(folder.rglob("*.json"))
    name = lambda path: str(path.relative_to(folder).with_suffix(""))
    write("texts", {name(path): json.loads(path.read_text()) for path in paths})
    for task in tasks.TASKS:
        kept = {}
        for policy, answers in tasks.answers(task, options).items():
            figures = {name: tasks.figures(answer) for name, answer in sorted(answers.items())}
            kept |= {policy: figures} if figures else {}
        write(task, kept)
    return 0


def write(name, figures):
    if figures:
        compact = lambda value: json.dumps(value, separators=(",", ":"))
        lines = [f"{json.dumps(key)}: {compact(value)}" for key, value in figures.items()]
        (KEPT / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    sys.exit(main())
