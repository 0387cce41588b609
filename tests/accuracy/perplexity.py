"""What compression costs in perplexity, beside figures that another implementation gave (float32 on both sides).

    perplexity.py --benchmarks DIR --models DIR [--results DIR] [--only WORD ...] [--print]

DIR/perplexity/expected.json names texts, policies and ratios; the text TEXT.MODEL lies beside it as TEXT.MODEL.json,
token ids. Its model is --models DIR/MODEL-fp32, an export with fp32 weights. A row is the mean negative log-likelihood
of the tokens behind the first compression, less that with the whole cache. What --results has is not run again (the
cells are those of texts.py); a row that is not there is printed as not run. Exits with 1 if a figure is further from
the expected one than 5e-4, or if none is there; a file that is absent is an error.
"""

import json
import sys

import cells
from cells import Cell

TOLERANCE = 5e-4
# The reference's rules: those that look ahead have had another history and budget since.
POLICIES = {
    "rpc layer": "rpc:aggregation=layer",
    "rpc kv_head": "rpc:aggregation=kv_head",
    "lookahead": "lookahead:aggregation=kv_head:history=0.3",
    "lookahead-merge": "lookahead-merge:aggregation=kv_head:history=0.3:similarity=cosine",
}


def main() -> int:
    options = cells.arguments(__doc__).parse_args()
    folder = options.benchmarks / "perplexity"
    cells.need(folder / "expected.json")
    expected = json.loads((folder / "expected.json").read_text())
    rows = []
    for name, figures in expected["texts"].items():
        text, model = name.split(".")
        for policy, ratios in figures["nll_minus_full"].items():
            for ratio, figure in sorted(ratios.items()):
                label = f"{POLICIES.get(policy, policy)}:ratio={ratio.removeprefix('c')}"
                cell = Cell(model, text, label, expected["P"], expected["R"])
                rows.append((cell, policy, ratio, figure, figures))
    if not options.print:
        cells.run([row[0] for row in rows], options)
    worst, found, whole = 0.0, 0, set()
    print(f"{'text':<12} {'model':<12} {'policy':<16} {'c':>2} {'expected':>9} {'found':>9} {'apart':>9}")

    def line(cell, policy, ratio, expected, figure):
        nonlocal worst
        words = f"{cell.text:<12} {cell.model:<12} {policy:<16} {ratio:>2} {expected:9.4f}"
        if figure is None:
            return print(f"{words} not run")
        worst = max(worst, abs(figure - expected))
        miss = "" if abs(figure - expected) <= TOLERANCE else "  <--"
        print(f"{words} {figure:9.4f} {figure - expected:9.5f}{miss}")

    for cell, policy, ratio, figure, figures in rows:
        kept = cell.read(options.results)
        if kept and kept["tokens"] != figures["n"]:
            sys.exit(f"{cell}: expected {figures['n']} tokens, found {kept['tokens']}")
        if kept and (cell.model, cell.text) not in whole:
            whole.add((cell.model, cell.text))
            line(cell, "none", "", figures["full_nll_after_first_compression"], kept["full_nll"])
        found += kept is not None
        line(cell, policy, ratio.removeprefix("c"), figure, cells.mean(kept, "nll_minus_full")[0] if kept else None)
    print(f"{found} of {len(rows)} figures and {len(whole)} whole caches, at most {worst:.5f} apart")
    return int(worst > TOLERANCE or found == 0)


if __name__ == "__main__":
    sys.exit(main())
