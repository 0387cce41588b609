"""Accuracy against trace length, number of compressions and policy: `reasoning-rpc eval`, read into a table and a plot."""

from __future__ import annotations

import argparse
import json
import subprocess
from collections import defaultdict
from pathlib import Path

from .problems import GIST_ID, GISTS, Problem, encode, first_error, solve

# As `eval --policies` takes them; what stands before the first colon and the aggregation are the row's name.
POLICIES = (
    "rpc",
    "rpc:aggregation=kv_head",
    "snapkv",
    "streaming",
    "random",
    "r-kv",
    "lookahead:aggregation=kv_head",
    "lookahead-merge:aggregation=kv_head",
    "lookahead-merge",
    "lookahead-merge:similarity=cosine",
    "lookahead:aggregation=kv_head:queries=online",
    "lookahead-merge:aggregation=kv_head:queries=online",
    "lookahead-merge:queries=online",
    "h2o",
    "tova",
)
# The models: the two that are compressed, and the one that sums up.
COMPRESSED, SUMMED_UP = ("plain", "dropout"), "lightthinker"
COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#7f7f7f", "#e69f00", "#cc79a7", "#8c564b", "#d55e00", "#ff9896", "#98df8a", "#f0e442", "#17becf", "#aec7e8", "#000000", "#8b4513", "#556b2f")


def interval_for(length: int, compressions: int, window: int, ratio: int) -> int:
    """The interval, a multiple of the ratio, with which a trace of about `length` tokens is compressed so often.

    The last compression comes half an interval before the end, so that there is something left to say after it.
    """
    interval = (length - window) / (compressions + 0.5)
    return max(ratio, round(interval / ratio) * ratio)


def peak_entries(length: int, interval: int, window: int, ratio: int) -> int:
    """The most generated entries that any of the policies holds at once in an answer of `length` tokens."""
    written = length - 1
    done = max(0, (written - window) // interval)
    kept = interval // ratio
    return max((done - 1) * kept + window + interval if done else 0, done * (kept - interval) + written)


def peak_with_gists(reasoning: str, gists: int = GISTS) -> int:
    """The most generated entries at once where each line goes when its gists are written; the end is not written."""
    lines = [len(line) + 1 for line in reasoning.split(";")[:-1]]
    return max(done * gists + line + gists for done, line in enumerate(lines))


def draw(options: argparse.Namespace) -> int:
    lengths = sorted(int(path.stem.split("-")[1]) for path in options.out.glob("length-*.jsonl"))
    there = [name for name in (*COMPRESSED, SUMMED_UP) if (options.out / name / "manifest.json").exists()]
    if not lengths or not there:
        raise SystemExit(f"{options.out}: expected models and problems, found none: run `train` first")
    models = [name for name in there if name != SUMMED_UP]
    table: list[dict] = []
    gists: list[dict] = []
    for length in lengths:
        if models:
            table += evaluate(options, models, length)
        if SUMMED_UP in there:
            gists += evaluate_gists(options, length)
    folder = options.out / "curve"
    text = "\n".join(filter(None, (markdown(table, models, options), gists_markdown(gists))))
    (folder / "curve.json").write_text(json.dumps(table + gists, indent=1) + "\n")
    (folder / "curve.md").write_text(text)
    if models:
        (folder / "curve.svg").write_text(svg(table, models, options.ratio))
    print(text, end="")
    return 0


def evaluate(options: argparse.Namespace, models: list[str], length: int) -> list[dict]:
    """A row for each model, policy and number of compressions, on problems of one length."""
    labels = {"none": ("none", 0)}
    for compressions in options.compressions:
        interval = interval_for(length, compressions, options.window, options.ratio)
        if interval <= options.window or any(label.endswith(f"={interval}") for label in labels):
            continue  # so short a trace cannot be compressed so often
        labels |= {f"{policy}:interval={interval}": (policy, compressions) for policy in POLICIES}
    rows = ask(
        options, models, length, options.out / "curve" / f"length-{length}", round(length * 1.25),
        "--policies", ",".join(labels), "--ratio", str(options.ratio), "--window", str(options.window),
    )  # fmt: skip
    for row in rows:
        row["policy"], row["compressions"] = labels[row["policy"]]
    return rows


def evaluate_gists(options: argparse.Namespace, length: int) -> list[dict]:
    """A row for each policy of the model that sums lines up, and what its network gives in JAX under the mask of the
    training. Its gists count as tokens of the answer, and are put there
    by the engine: the model's tokenizer does not know them."""
    rows = ask(
        options, [SUMMED_UP], length, options.out / "curve" / f"length-{length}-gists", round(length * 1.6),
        "--policies", f"none,{SUMMED_UP}", "--delimiters", str(encode(";")[0]), "--gists", ",".join([str(GIST_ID)] * GISTS),
    )  # fmt: skip
    from .training import exact  # needs JAX

    prompts = list(prompts_of(options.out, length).values())[: options.limit]
    reasoning = [solve(prompt) for prompt in prompts]
    problems = [Problem(prompt, text, int(text[-2])) for prompt, text in zip(prompts, reasoning)]
    expected = exact(options.out / f"{SUMMED_UP}-huggingface", problems, GISTS)
    peaks = {"none": len, SUMMED_UP: peak_with_gists}
    for row in rows:
        most = [peaks[row["policy"]](text) for text in reasoning]
        row |= {"compressions": row["mean_compressions"], "mean_peak_entries": sum(most) / len(most)}
        if row["policy"] == SUMMED_UP:
            row["exact_under_the_mask"] = expected
    return rows


def prompts_of(folder: Path, length: int) -> dict[str, str]:
    lines = (folder / f"length-{length}.jsonl").read_text().splitlines()
    return {str(problem["id"]): problem["prompt"] for problem in map(json.loads, lines)}


def ask(
    options: argparse.Namespace, models: list[str], length: int, out: Path, max_tokens: int, *arguments: str
) -> list[dict]:
    """`eval` of the problems of one length: its report's rows, with the share of wholly right traces."""
    out.mkdir(parents=True, exist_ok=True)
    command = [
        str(options.program), "eval", "--problems", str(options.out / f"length-{length}.jsonl"), "--prompt", "raw",
        "--out", str(out), "--max-tokens", str(max_tokens), "--rows", "32", "--threads", "1", "--cache-dtype", "fp32",
        "--output", "json", *arguments,
    ]  # fmt: skip
    for model in models:
        command += ["--model", str(options.out / model)]
    if options.limit:
        command += ["--limit", str(options.limit)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    prompts = prompts_of(options.out, length)
    exact: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for line in (out / "run.jsonl").read_text().splitlines():
        record = json.loads(line)
        right = record["stop_reason"] == "eos" and first_error(prompts[record["problem"]], record["text"]) is None
        exact[record["model"], record["policy"]].append(right)
    rows = []
    for row in json.loads(done.stdout)["rows"]:
        found = exact[row["model"], row["policy"]]
        rows.append(
            {"length": length, "policy": row["policy"], "exact": sum(found) / len(found)}
            | {key: row[key] for key in ("model", "accuracy", "interval", "problems", "mean_compressions", "bound_bytes")}
            | {"p": (row["against_none"] or {}).get("p")}
        )
    return rows


def markdown(table: list[dict], models: list[str], options: argparse.Namespace) -> str:
    """For each model and length a table: policies down, compressions across; right answers, and wholly right traces."""
    text = ""
    for model in models:
        for length in sorted({row["length"] for row in table}):
            rows = [row for row in table if (row["model"], row["length"]) == (model, length)]
            counts = sorted({row["compressions"] for row in rows} - {0})
            intervals = [interval_for(length, count, options.window, options.ratio) for count in counts]
            full = next(row for row in rows if row["policy"] == "none")
            text += f"\n### {model}, traces of {length} tokens\n\n"
            text += f"Full cache: {cell(full)}, of {full['problems']} problems.\n\n"
            done = {row["compressions"]: row["mean_compressions"] for row in rows if row["policy"] == "rpc"}
            heads = (f"{done[n]:.1f} ({p})" for n, p in zip(counts, intervals))
            text += "| compressions (interval) | " + " | ".join(heads) + " |\n"
            text += "| --- |" + " ---: |" * len(counts) + "\n"
            for policy in POLICIES:
                cells = {row["compressions"]: cell(row) for row in rows if row["policy"] == policy}
                text += f"| {policy} | " + " | ".join(cells.get(count, "-") for count in counts) + " |\n"
            peaks = (f"{peak_entries(length, p, options.window, options.ratio)} of {length - 1}" for p in intervals)
            text += "| most generated entries at once | " + " | ".join(peaks) + " |\n"
    return text.lstrip()


def gists_markdown(rows: list[dict]) -> str:
    """A table for the model that sums lines up: lengths down."""
    if not rows:
        return ""
    text = f"### {SUMMED_UP}, {GISTS} gists in the place of each line\n\n"
    text += "| traces of | full cache | lightthinker | p | in JAX | lines that went | most generated entries at once, mean |\n"
    text += "| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
    for length in sorted({row["length"] for row in rows}):
        full, summed = (
            next(row for row in rows if (row["length"], row["policy"]) == (length, policy)) for policy in ("none", SUMMED_UP)
        )
        p = "-" if summed["p"] is None else f"{summed['p']:.2g}"
        peaks = f"{summed['mean_peak_entries']:.1f} of {full['mean_peak_entries']:.1f}"
        jax = f"({summed['exact_under_the_mask']:.2f})"
        text += f"| {length} tokens | {cell(full)} | {cell(summed)} | {p} | {jax} | {summed['compressions']:.1f} | {peaks} |\n"
    return text


def cell(row: dict) -> str:
    """Right answers, and in brackets traces without any error."""
    return f"{row['accuracy']:.2f} ({row['exact']:.2f})"


def svg(table: list[dict], models: list[str], ratio: int) -> str:
    """Right answers against compressions: a panel for each model (down) and length (across)."""
    lengths = sorted({row["length"] for row in table})
    counts = sorted({row["compressions"] for row in table})
    width, height, left, top = 210, 150, 50, 40
    total = (left + len(lengths) * (width + 30) + 130, top + len(models) * (height + 60))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total[0]} {total[1]}" font-family="sans-serif" font-size="11">',
        f'<rect width="{total[0]}" height="{total[1]}" fill="#fff"/>',
        f'<text x="{left}" y="16" font-size="13">Right answers against compressions, {ratio}x</text>',
    ]
    for down, model in enumerate(models):
        for across, length in enumerate(lengths):
            x0, y0 = left + across * (width + 30), top + down * (height + 60)
            at = lambda count, share: (
                x0 + counts.index(count) / max(1, len(counts) - 1) * width,
                y0 + (1 - share) * height,
            )
            parts.append(f'<text x="{x0}" y="{y0 - 6}">{model}, {length} tokens</text>')
            for share in (0, 0.5, 1):
                y = at(counts[0], share)[1]
                parts.append(f'<path d="M{x0} {y:.1f}h{width}" stroke="#ddd"/>')
                parts.append(f'<text x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end">{share:g}</text>')
            for count in counts:
                x = at(count, 0)[0]
                parts.append(f'<text x="{x:.1f}" y="{y0 + height + 16}" text-anchor="middle">{count}</text>')
            found = [row for row in table if (row["model"], row["length"]) == (model, length)]
            full = next(row for row in found if row["policy"] == "none")
            for policy, colour in zip(POLICIES, COLOURS):
                line = {row["compressions"]: row["accuracy"] for row in found if row["policy"] == policy}
                line[0] = full["accuracy"]
                points = " ".join("{:.1f},{:.1f}".format(*at(count, share)) for count, share in sorted(line.items()))
                parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    for index, (policy, colour) in enumerate(zip(POLICIES, COLOURS)):
        x, y = left + len(lengths) * (width + 30), top + 18 * index
        parts.append(f'<rect x="{x}" y="{y}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{x + 15}" y="{y + 9}">{policy.replace(":aggregation=", ", ")}</text>')
    return "\n".join(parts) + "\n</svg>\n"
