"""The report of a run: Markdown, JSON and a plot, each readable without the others."""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

from . import settings, shapes
from .driver import Setting

SETTINGS: dict[str, Setting] = {
    setting.label: setting
    for group in (settings.DECODE, settings.HELD_AT_2048, settings.PREFILL, settings.BATCH, settings.SMOLLM2)
    for setting in group
}


def write(result: dict[str, Any], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    commit = result["machine"]["commit"].split()[0]
    stem = folder / f"{time.strftime('%Y-%m-%d-%H%M', time.gmtime())}-{commit}"
    stem.with_suffix(".json").write_text(json.dumps(result) + "\n")
    plotted = "decode" in result
    if plotted:
        plot(result, stem.with_suffix(".svg"))
    parts = [heading(result)]
    if plotted:
        parts.append(f"![ms per token against cache length]({stem.name}.svg)")
    for section in (decode, prefill, batch, rpc, whole, smollm2):
        if section.__name__ in result:
            parts.append(section(result))
    if result["failures"]:
        lines = "\n".join(f"- {text}" for text in result["failures"].values())
        parts.append(f"## Left out\n{lines}")
    report = stem.with_suffix(".md")
    report.write_text("\n\n".join(parts) + "\n")
    return report


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def heading(result: dict[str, Any]) -> str:
    facts = result["machine"] | {
        "date": result["date"],
        "command": f"`{result['command']}`, {result.get('minutes', 0):.0f} minutes",
    }
    for threads, rates in result["bandwidth"].items():
        spread = f"{min(rates) / 1e9:.1f} to {max(rates) / 1e9:.1f}"
        facts[f"read bandwidth, {threads} thread{'s' if threads != '1' else ''}"] = (
            f"{read_rate(result, threads) / 1e9:.1f} GB/s (median of {len(rates)}, {spread})"
        )
    versions: dict[str, str] = {}
    for label, info in result["versions"].items():
        setting = SETTINGS[label]
        versions[setting.engine] = info["version"] + (f" ({info['simd']})" if "simd" in info else "")
    facts["versions"] = "; ".join(f"{engine}: {text}" for engine, text in versions.items())
    return "# Measurements against other engines\n\n" + table(["", ""], [[name, text] for name, text in facts.items()])


def read_rate(result: dict[str, Any], threads: str) -> float:
    return median(result["bandwidth"][threads])


def cell_ms(cell: dict[str, Any] | None) -> str:
    """Median over rounds, and how far the rounds lie apart."""
    if cell is None:
        return "–"
    rounds = [seconds * 1e3 for seconds in cell["seconds"]]
    spread = f" ±{(max(rounds) - min(rounds)) / 2:.1f}" if len(rounds) > 1 else ""
    return f"{median(rounds):.1f}{spread}"


def seconds_of(cell: dict[str, Any]) -> float:
    return median(cell["seconds"])


def decode(result: dict[str, Any]) -> str:
    section = result["decode"]
    lengths = section["lengths"]
    shape = shapes.cut(8)
    rate = read_rate(result, "1")
    rows = []
    for label, cells in section["full"].items():
        rows.append([label, *(cell_ms(cells.get(str(length))) for length in lengths)])
    floor = [(shape.weight_bytes() + length * shape.entry_bytes()) / rate * 1e3 for length in lengths]
    rows.append(["*floor: 4.5-bit weights and fp16 cache, read once*", *(f"*{ms:.1f}*" for ms in floor)])
    text = [
        f"## Decoding: ms/token against entries in the cache\n\n{section['shape']}, one core, one row, the whole cache "
        f"kept; median of {result['rounds']} rounds, ± half their range.",
        table(["", *map(str, lengths)], rows),
    ]
    used = []
    for label, cells in section["full"].items():
        setting = SETTINGS[label]
        weights = section["weight_bytes"][setting.model]
        entry = shape.entry_bytes(setting.element_bytes)
        line = [label]
        for length in lengths:
            cell = cells.get(str(length))
            line.append("–" if cell is None else f"{(weights + length * entry) / seconds_of(cell) / 1e9:.1f}")
        base = cells.get(str(lengths[0]))
        for length in lengths[2:]:
            cell = cells.get(str(length))
            more = None if cell is None or base is None else seconds_of(cell) - seconds_of(base)
            line.append("–" if not more or more < 0 else f"{(length - lengths[0]) * entry / more / rate:.0%}")
        used.append(line)
    head = ["GB/s of weights and cache", *map(str, lengths), *(f"cache alone, {length}" for length in lengths[2:])]
    text.append(
        f"Bytes that the model of a token names (weights and cache, each once) over the time that it took; and of the "
        f"cache alone, by what a step takes longer than at {lengths[0]}, in parts of {rate / 1e9:.1f} GB/s."
    )
    text.append(table(head, used))
    lines = []
    for label, cells in section["full"].items():
        for length in lengths:
            parts = cells.get(str(length), {}).get("parts")
            if parts:
                step = parts["step_seconds"]
                shares = [parts["product_seconds"] / step, parts["attention_seconds"] / step]
                lines.append([label, str(length), *(f"{share:.1%}" for share in [*shares, 1 - sum(shares)])])
    text.append("Where our step's time goes; the rest is ONNX Runtime's overhead between nodes, and the copy of the logits.")
    text.append(table(["", "entries", "products, norms, gates", "attention", "rest"], lines))
    held = section["held"]
    if held:
        lines = []
        for label, cells in held.items():
            cell = cells[str(settings.HELD_ENTRIES)]
            compaction = cells.get("compaction")
            extra = 0.0 if compaction is None else compaction / settings.HELD["interval"]
            total = (seconds_of(cell) + extra) * 1e3
            lines.append([label, cell_ms(cell), f"{extra * 1e3:.2f}" if compaction is not None else "in it", f"{total:.1f}"])
        text.append("## Cache held at 2,048 entries\n\nAs above, at some 30,000 tokens of text.")
        text.append(table(["", "ms/step", "ms/token of compressions", "ms/token"], lines))
    return "\n\n".join(text)


def prefill(result: dict[str, Any]) -> str:
    section = result["prefill"]
    rows = []
    for label, cells in section["seconds"].items():
        row = [label]
        for length in section["lengths"]:
            values = cells.get(str(length))
            row.append("–" if not values else f"{median(values):.2f}")
        rows.append(row)
    lowest = min(section["agreement"].values(), default=1.0)
    return "\n\n".join(
        [
            f"## Prefill: seconds until the first token\n\n{section['shape']}, {section['threads']} threads. The "
            f"engines' logits behind the prompt correlate by {lowest:.4f} and more: they have the same weights.",
            table(["prompt", *(f"{length} tokens" for length in section["lengths"])], rows),
        ]
    )


def batch(result: dict[str, Any]) -> str:
    section = result["batch"]
    text = [
        f"## Rows and memory\n\n{section['shape']}, {section['threads']} threads. Lengths are those of each row's text; "
        f"with RPC (P=1024, c=4) all but {256} tokens of it were generated. Memory is the largest resident while "
        "decoding, the model's mapped file in it."
    ]
    for what in ("tokens/s", "resident MiB"):
        head, lines = [what], []
        for rows in section["rows"]:
            head += [f"{rows} × {length}" for length in section["lengths"]]
        labels = list(dict.fromkeys(label for cells in section["rows"].values() for label in cells))
        for label in labels:
            line = [label]
            for rows, cells in section["rows"].items():
                for length in section["lengths"]:
                    cell = cells.get(label, {}).get(str(length))
                    if cell is None:
                        line.append("–")
                    elif what == "tokens/s":
                        compactions = cell.get("compaction", 0) * int(rows) / settings.RPC["interval"]
                        line.append(f"{int(rows) / (seconds_of(cell) + compactions):.1f}")
                    else:
                        line.append(f"{cell['memory'] / (1 << 20):.0f}")
            lines.append(line)
        text.append(table(head, lines))
    short = section["short"]
    lines = []
    for label in short["1"]:
        one, eight = (short[rows].get(label, {}).get("256") for rows in ("1", "8"))
        if one and eight:
            ratio = 8 * seconds_of(one) / seconds_of(eight)
            lines.append([label, f"{1 / seconds_of(one):.1f}", f"{8 / seconds_of(eight):.1f}", f"{ratio:.2f}"])
    text.append(table(["tokens/s at 256 entries", "1 row", "8 rows", "ratio"], lines))
    return "\n\n".join(text)


def rpc_ratio(section: dict[str, Any], rows: str) -> dict[str, float]:
    """Mean seconds per step of both, over the answer; compressions are counted in."""
    part = section["rows"][rows]
    samples = [str(sample) for sample in section["samples"]]
    full, compressed = (mean(seconds_of(part["table"][label][s]) for s in samples) for label in (
        settings.OURS.label,
        settings.OURS_RPC.label,
    ))
    # A compression's time grows with its number: the mean of the first, the middle and the last one's.
    each = mean(part["compactions"].values()) * int(rows)
    count = max(map(int, part["compactions"])) + 1
    compactions = each * count / section["generated"]
    return {"full": full, "rpc": compressed, "compactions": compactions, "ratio": full / (compressed + compactions)}


def rpc(result: dict[str, Any]) -> str:
    section = result["rpc"]
    lines = []
    for rows, part in section["rows"].items():
        found = rpc_ratio(section, rows)
        lines.append(
            [
                rows,
                f"{found['full'] * 1e3:.1f}",
                f"{found['rpc'] * 1e3:.1f}",
                f"{found['compactions'] * 1e3:.3f} ({found['compactions'] / found['rpc']:.2%})",
                f"{found['ratio']:.3f}",
                f"{part['predicted']:.3f}",
                f"{found['ratio'] / part['predicted']:.1%}",
            ]
        )
    head = ["rows", "ms/step, full", "ms/step, RPC", "compressions, ms/step", "ratio", "predicted by bytes", "reached"]
    return "\n\n".join(
        [
            f"## RPC (P=1024, R=32, c=4) over our own full cache\n\n{section['shape']}: the head cut like the layers, so "
            f"that bytes keep the proportion of 28 layers. One core; {section['generated']} generated tokens behind "
            f"{section['given']} given ones, by the middle rule over {len(section['samples'])} lengths.",
            table(head, lines),
        ]
    )


def whole(result: dict[str, Any]) -> str:
    section = result["whole"]
    full, compressed = (
        sum(section["seconds"][setting.label]) / section["generated"] for setting in (settings.OURS, settings.OURS_RPC)
    )
    stats = section["stats"][settings.OURS_RPC.label]
    ratio = full / compressed
    share = stats["compaction_seconds"] / (compressed * section["generated"])
    lines = [
        ["ms/token, full", f"{full * 1e3:.2f}"],
        ["ms/token, RPC", f"{compressed * 1e3:.2f}, compressions {share:.2%} of it"],
        ["ratio", f"{ratio:.3f}, predicted by bytes {section['predicted']:.3f}: {ratio / section['predicted']:.1%}"],
        ["peak bytes of the cache", f"{stats['cache_peak_bytes']:.0f}, by the formula {section['peak_bytes']:.0f}"],
    ]
    return "\n\n".join(
        [
            f"## The whole answer\n\n{section['shape']}, one core: {section['generated']} tokens behind "
            f"{section['given']} given ones, each of them run, in turns of {settings.RPC['interval']}.",
            table(["", ""], lines),
        ]
    )


def smollm2(result: dict[str, Any]) -> str:
    section = result["smollm2"]
    rows = [
        [label, *(cell_ms(cells.get(str(length))) for length in section["lengths"])]
        for label, cells in section["full"].items()
    ]
    return "\n\n".join(
        [
            "## SmolLM2-135M-Instruct, Q4_1: ms/token against entries in the cache\n\nThe real model, one core, one row. "
            "llama.cpp reads the file as it is; OpenVINO's model is what OpenVINO GenAI makes of it.",
            table(["", *map(str, section["lengths"])], rows),
        ]
    )


def plot(result: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "peers"  # the same file from the same figures
    from matplotlib import pyplot

    section = result["decode"]
    figure, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    colours = {"ours": "#c0392b", "llama.cpp": "#2c7fb8", "openvino": "#238b45", "openvino-paged": "#78a55a"}
    colours |= {"onnxruntime": "#8856a7"}
    styles = ["-", "--", ":"]
    drawn: dict[str, int] = {}
    for label, cells in section["full"].items():
        setting = SETTINGS[label]
        points = [(int(length), seconds_of(cell) * 1e3) for length, cell in cells.items()]
        index = drawn.get(setting.engine, 0)
        drawn[setting.engine] = index + 1
        axes.plot(
            *zip(*points, strict=True),
            styles[index % len(styles)],
            color=colours.get(setting.engine, "grey"),
            marker="o",
            markersize=3.5,
            linewidth=2.2 if setting.ours else 1.4,
            label=label,
        )
    for label, cells in section["held"].items():
        value = seconds_of(cells[str(settings.HELD_ENTRIES)]) * 1e3
        colour = colours["ours" if SETTINGS[label].ours else "openvino"]
        axes.axhline(value, color=colour, linewidth=0.8, linestyle="-.", label=label)
    shape = shapes.cut(8)
    lengths = section["lengths"]
    rate = read_rate(result, "1")
    floor = [(shape.weight_bytes() + length * shape.entry_bytes()) / rate * 1e3 for length in lengths]
    axes.fill_between(lengths, floor, color="#dddddd", label=f"fp16 cache at {rate / 1e9:.1f} GB/s", linewidth=0)
    axes.set(xlabel="entries in the cache", ylabel="ms/token", xlim=(0, max(lengths) * 1.02), ylim=(0, None))
    axes.set_title(f"{section['shape']}, one core of {result['machine']['cpu'].split(',')[0]}", fontsize=10)
    axes.legend(fontsize=8, ncols=2)
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
