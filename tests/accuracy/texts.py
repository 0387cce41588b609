"""The tables of docs/accuracy.md on texts, in Markdown.

    texts.py policies|histories|intervals|defaults|options|memory --benchmarks DIR --models DIR [--results DIR] [--only WORD ...] [--print]

policies: every policy, three texts, two models, P = 256, R = 32, c = 2, 4, 8, fp32. intervals: SmolLM2 at P = 1024 with
caches of fp16 and int8. defaults: Qwen2.5-Coder at P = 4096, the default, int8 weights, fp16 cache. histories: how much
of an entry's last score those that look ahead add to the new one, on the text that it was chosen on. options: variants of rpc, chosen on one text and reported on three others. memory: what policies
take with fp16 caches, for answers of 8,000 tokens (SmolLM2) and 32,000. The models are
--models DIR/smollm2-fp32, DIR/qwen25coder-fp32 and, for defaults, DIR/qwen25coder-int8. Runs what --results lacks, one file for each figure, and then prints
the table; a figure that is not there is printed as not run. A benchmark's file or a model that is absent is an error.
"""

import json
import subprocess
import sys

import cells
from cells import PROMPT_TOKENS, Cell, mean, quantile, ratio, table

MODELS = {"smollm2": "SmolLM2-135M", "qwen25coder": "Qwen2.5-Coder-0.5B"}
TEXTS = {
    "novel_late": "novel, later part",
    "tutorial": "Python tutorial",
    "rust_source": "Rust source",
    "novel_ch3": "novel, from its third chapter",
    "novel_8k": "novel, 8192 tokens",
    "novel_12k": "novel",
    "tutorial_rust": "tutorial, then Rust source",
}
RPC = "rpc:aggregation=layer"  # what the others are compared with
ADAPTIVE = "lookahead-merge:aggregation=adaptive"
ALIKE = "lookahead-merge:aggregation=kv_head"  # as many entries in each KV head
ONLINE = "lookahead-merge:queries=online:aggregation=adaptive"
STORED = "lookahead-merge:queries=stored:aggregation=adaptive"
COSINE = ":similarity=cosine"  # as the rule was first, and as most of what it was compared with was run
READ = ["novel_late", "tutorial", "rust_source"]
POLICIES = {
    "rpc, sets per layer": RPC,
    "rpc, sets per KV head": "rpc:aggregation=kv_head",
    "snapkv": "snapkv",
    "r-kv": "r-kv",
    "streaming": "streaming",
    "random": "random",
    "lookahead": "lookahead:aggregation=kv_head",
    "lookahead-merge": ALIKE,
    "lookahead-merge, adaptive": ADAPTIVE,
    "lookahead, online": "lookahead:aggregation=kv_head:queries=online",
    "lookahead-merge, online": f"{ALIKE}:queries=online",
    "lookahead-merge, online, adaptive": ONLINE,
    "lookahead, history 0.3": "lookahead:aggregation=kv_head:history=0.3",
    "lookahead-merge, cosine, history 0.3": f"{ALIKE}:history=0.3{COSINE}",
    "lookahead-merge, cosine": f"{ALIKE}{COSINE}",
    "lookahead-merge, cosine, adaptive": f"{ADAPTIVE}{COSINE}",
    "lookahead-merge, cosine, online": f"{ALIKE}:queries=online{COSINE}",
    "lookahead-merge, cosine, online, adaptive": f"{ONLINE}{COSINE}",
    "h2o": "h2o",
    "tova": "tova",
}
RATIOS = [2, 4, 8]
NOT_RUN = "not run"

# Listed before any was run. The window stays at 32: a longer one is kept on top of the budget.
TUNED_ON, TUNED_AT = "novel_ch3", 4
VARIANTS = [
    "rpc",
    "rpc:aggregation=kv_head",
    "rpc:softmax=all",
    "rpc:pooling=none",
    "rpc:pooling=max",
    "rpc:kernel=3",
    "rpc:kernel=15",
    "rpc:history=0.5",
    "rpc:history=0.9",
    "rpc:value-norms=yes",
    "rpc:redundancy=0.1",
    "rpc:redundancy=0.5",
    "rpc:aggregation=kv_head:softmax=all",
    "rpc:aggregation=kv_head:softmax=all:pooling=none",
    "rpc:aggregation=kv_head:softmax=all:history=0.9",
    "rpc:aggregation=kv_head:value-norms=yes",
    "rpc:aggregation=kv_head:softmax=all:history=0.9:value-norms=yes",
    "rpc:softmax=all:history=0.9:kernel=15",
]
HISTORIES = [
    RPC,
    "lookahead:aggregation=kv_head:history=0.3",
    "lookahead:aggregation=kv_head",
    f"{ALIKE}:history=0.3{COSINE}",
    f"{ALIKE}:history=0.45{COSINE}",
    f"{ALIKE}{COSINE}",
    f"{ALIKE}:history=0.75{COSINE}",
    f"{ALIKE}:history=0.9{COSINE}",
    f"{ADAPTIVE}{COSINE}",
    f"{ALIKE}:queries=online{COSINE}",
    f"{ONLINE}{COSINE}",
]
REPORTED = 3  # of the variants, beside rpc itself


def with_error(figure):
    value, error = figure
    return f"{value:+.4f} ± {error:.4f}"


def columns(cell):
    return [with_error(mean(cell, "nll_minus_full")), with_error(mean(cell, "kl"))[1:]] if cell else [NOT_RUN] * 2


def policies(options):
    def some(model, names, ratios):
        of = [POLICIES[name] for name in names]
        return [Cell(model, text, f"{policy}:ratio={c}") for c in ratios for text in READ for policy in of]

    rolling = [name for name in POLICIES if name in cells.ROLLING]
    others = [name for name in POLICIES if name not in rolling]
    core = [name for name in others if name.startswith(("rpc", "lookahead"))]
    new = ["lookahead-merge, adaptive", "lookahead-merge, online, adaptive"]
    # What is wanted first and cheap comes first.
    stages = [
        some("smollm2", new, (4, 8)),
        some("qwen25coder", new, (4, 8)),
        some("smollm2", others, (4, 8)),
        some("qwen25coder", core, (4, 8)),
        some("smollm2", rolling, RATIOS),
        some("smollm2", others, (2,)),
        some("qwen25coder", others, (4, 8, 2)),
        some("qwen25coder", rolling, RATIOS),
    ]
    for stage in [] if options.print else stages:
        cells.run(stage, options)
    for model, name in MODELS.items():
        for text in READ:
            found = {
                (policy, c): Cell(model, text, f"{value}:ratio={c}").read(options.results)
                for policy, value in POLICIES.items()
                for c in RATIOS
            }
            known = next((cell for cell in found.values() if cell), None)
            whole = f"{known['tokens']} tokens; whole cache {known['full_nll']:.4f}" if known else NOT_RUN
            print(f"\n**{name}, {TEXTS[text]}** ({whole})\n")
            head = ["policy"] + [word for c in RATIOS for word in (f"c={c}: NLL - full", "KL")]
            rows = [[policy] + [word for c in RATIOS for word in columns(found[policy, c])] for policy in POLICIES]
            print(table(head, rows))
    for rule in (ADAPTIVE, ONLINE, ALIKE, ADAPTIVE + COSINE, ONLINE + COSINE, ALIKE + COSINE):
        print(f"\n**{rule}'s loss as a share of rpc's** (sets per layer; 95% intervals, paired by block)\n")
        rows = []
        for model, name in MODELS.items():
            for c in RATIOS:
                pairs = []
                for text in READ:
                    pair = [
                        Cell(model, text, f"{policy}:ratio={c}").read(options.results) for policy in (rule, RPC)
                    ]
                    rows.append([name, TEXTS[text], str(c), *shares([pair] if all(pair) else [])])
                    pairs.append(pair)
                rows.append([name, "all three", str(c), *shares(pairs if all(all(pair) for pair in pairs) else [])])
        print(table(["model", "text", "c", "NLL", "KL", "at most 0.6 (NLL, KL)"], rows))

    print("**KL as a share of rpc's by thirds of the texts**: whether a policy holds up as a text grows; of those that were run\n")
    head = ["model", "policy", "c", *(TEXTS[text] for text in READ), "all: first third", "second", "last"]
    rows = []
    for model, name in MODELS.items():
        for policy, value in list(POLICIES.items())[1:]:
            for c in (4, 8):
                pairs = [
                    [Cell(model, text, f"{label}:ratio={c}").read(options.results) for label in (value, RPC)]
                    for text in READ
                ]
                if not any(all(pair) for pair in pairs):
                    continue
                own = [" ".join(f"{ratio(*sums)[0]:.2f}" for sums in thirds([p])) if all(p) else NOT_RUN for p in pairs]
                whole = all(all(pair) for pair in pairs)
                pooled = [interval(*sums) for sums in thirds(pairs)] if whole else [NOT_RUN] * 3
                rows.append([name, policy, str(c), *own, *pooled])
    print(table(head, rows))
    print("**lookahead-merge, adaptive, at c = 8 beside rpc at c = 4**: with the queries it remembers, 0.8 times the bytes here\n")
    rows = []
    for model, name in MODELS.items():
        pairs = []
        for text in READ:
            pair = [
                Cell(model, text, f"{policy}:ratio={c}").read(options.results)
                for policy, c in ((ADAPTIVE, 8), (RPC, 4))
            ]
            rows.append([name, TEXTS[text], *shares([pair] if all(pair) else [])[:2]])
            pairs.append(pair)
        rows.append([name, "all three", *shares(pairs if all(all(pair) for pair in pairs) else [])[:2]])
    print(table(["model", "text", "NLL of rpc's", "KL of rpc's"], rows))


def thirds(pairs):
    """KL of pairs of cells, block by block, in the first, second and last third of their texts."""
    for third in range(3):
        sums = ([], [])
        for pair in pairs:
            low, high = (len(pair[0]["kl"]) * bound // 3 for bound in (third, third + 1))
            for side, cell in zip(sums, pair):
                side.extend(cell["kl"][low:high])
        yield sums


def interval(tops, bottoms):
    found, error = ratio(tops, bottoms)
    reach = quantile(len(tops)) * error
    return f"{found:.2f} ({found - reach:.2f} to {found + reach:.2f})"


def shares(pairs):
    """The ratio of losses, of divergences, and what can be said of them."""
    if not pairs:
        return [NOT_RUN] * 3
    words, verdicts = [], []
    for what in ("nll_minus_full", "kl"):
        tops, bottoms = ([block for pair in pairs for block in pair[side][what]] for side in (0, 1))
        if sum(bottoms) <= 0:
            words.append("rpc loses nothing")
            verdicts.append("-")
            continue
        found, error = ratio(tops, bottoms)
        reach = quantile(len(tops)) * error
        words.append(interval(tops, bottoms))
        sure = found + reach <= 0.6 or found - reach > 0.6
        verdicts.append(("yes" if found <= 0.6 else "no") + ("" if sure else ", not certain"))
    return [*words, "; ".join(verdicts)]


def intervals(options):
    settings = [(text, cache) for text in [*READ, "novel_8k"] for cache in ("fp16", "int8")]
    order = [
        Cell("smollm2", text, f"{policy}:ratio=4", 1024, 32, cache)
        for policies in ([RPC, STORED, ONLINE], ["snapkv", "random", "streaming", STORED + COSINE, ONLINE + COSINE])
        for text, cache in settings
        for policy in policies
    ]
    if not options.print:
        cells.run(order, options)
    policies = (RPC, "snapkv", "streaming", "random", STORED, ONLINE, STORED + COSINE, ONLINE + COSINE)
    rows = []
    for text, cache in settings:
        at = lambda policy: Cell("smollm2", text, f"{policy}:ratio=4", 1024, 32, cache).read(options.results)
        rows += [[TEXTS[text], cache, *row] for row in beside_rpc(policies, at)]
    print(table(["text", "cache", *BESIDE_RPC], rows))


BESIDE_RPC = ["policy", "NLL - full", "KL", "NLL of rpc's", "KL of rpc's"]


def beside_rpc(policies, at):
    """A row for each policy whose figures `at` gives, None if it was not run."""
    rpc = at(RPC)
    for policy in policies:
        found = at(policy)
        of_rpc = shares([(found, rpc)])[:2] if found and rpc and policy != RPC else ["", ""]
        yield ["rpc" if policy == RPC else policy, *columns(found), *of_rpc]


def defaults(options):
    def cell(text, policy):
        return Cell("qwen25coder", text, f"{policy}:ratio=4", 4096, 32, "fp16", "int8")

    texts, rules = ("novel_12k", "tutorial_rust"), (RPC, "streaming", "random", ONLINE)
    if not options.print:
        cells.run([cell(text, policy) for text in texts for policy in rules], options)
    rows = []
    for text in texts:
        at = lambda policy: cell(text, policy).read(options.results)
        rows += [[TEXTS[text], *row] for row in beside_rpc(rules, at)]
    print(table(["text", *BESIDE_RPC], rows))


def options_search(options):
    tuned = {variant: Cell("smollm2", TUNED_ON, f"{variant}:ratio={TUNED_AT}") for variant in VARIANTS}
    if not options.print:
        cells.run(tuned.values(), options)
    found = {variant: cell.read(options.results) for variant, cell in tuned.items()}
    known = sorted((variant for variant in VARIANTS if found[variant]), key=lambda v: mean(found[v], "kl")[0])
    print(f"\n**Chosen on the {TEXTS[TUNED_ON]}** (SmolLM2-135M, c = {TUNED_AT}; the smallest KL first)\n")
    rows = []
    for variant in known + [variant for variant in VARIANTS if not found[variant]]:
        of_rpc = shares([(found[variant], found["rpc"])])[:2] if found[variant] and found["rpc"] else [NOT_RUN] * 2
        rows.append([variant, *columns(found[variant]), *of_rpc])
    print(table(["variant", "NLL - full", "KL", "NLL of rpc's", "KL of rpc's"], rows))
    if len(known) < len(VARIANTS):
        return print("The texts for the report: not run.")
    chosen = ["rpc"] + [variant for variant in known if variant != "rpc"][:REPORTED]
    settings = [(text, c) for c in (4, 8) for text in READ]
    # rpc's own sets are per layer: the cell of the table of policies.
    name = lambda variant, c: f"{variant if variant != 'rpc' else 'rpc:aggregation=layer'}:ratio={c}"
    if not options.print:
        cells.run([Cell("smollm2", text, name(v, c)) for text, c in settings for v in chosen], options)
    print("\n**Reported on texts that nothing was chosen on**\n")
    rows = []
    for text, c in settings:
        rpc = Cell("smollm2", text, name("rpc", c)).read(options.results)
        for variant in chosen:
            cell = Cell("smollm2", text, name(variant, c)).read(options.results)
            of_rpc = shares([(cell, rpc)])[:2] if cell and rpc else [NOT_RUN] * 2
            rows.append([TEXTS[text], str(c), variant, *columns(cell), *of_rpc])
    print(table(["text", "c", "variant", "NLL - full", "KL", "NLL of rpc's", "KL of rpc's"], rows))


def histories(options):
    all_cells = {(variant, c): Cell("smollm2", TUNED_ON, f"{variant}:ratio={c}") for c in (4, 8) for variant in HISTORIES}
    if not options.print:
        cells.run(all_cells.values(), options)
    rows = []
    for (variant, c), cell in all_cells.items():
        found, rpc = cell.read(options.results), all_cells[RPC, c].read(options.results)
        of_rpc = shares([(found, rpc)])[:2] if found and rpc and variant != RPC else ["", ""]
        by_thirds = " ".join(f"{ratio(*sums)[0]:.2f}" for sums in thirds([(found, rpc)])) if found and rpc else ""
        rows.append([str(c), variant, *columns(found), *of_rpc, by_thirds])
    print(table(["c", "policy", "NLL - full", "KL", "NLL of rpc's", "KL of rpc's", "by thirds"], rows))


def memory(options):
    """What a policy takes: its cache, and what it remembers beside it, as `reasoning-rpc inspect` counts."""
    rows = []
    for model, tokens in (("smollm2", 8000), ("qwen25coder", 32000)):
        folder = options.models / f"{model}-fp32"
        cells.need(options.program, folder / "manifest.json")
        for interval in (256, 1024, 4096):
            for policy, c, queries in (
                ("none", 4, None),
                ("rpc", 4, None),
                ("lookahead", 4, "stored"),
                ("lookahead", 8, "stored"),
                ("lookahead", 4, "online"),
                ("lookahead-merge", 4, "online"),
            ):
                command = [
                    options.program, "inspect", "--model", folder, "--prompt-tokens", PROMPT_TOKENS, "--output", "json",
                    "--max-tokens", tokens, "--policy", policy, "--interval", interval, "--ratio", c,
                    "--cache-dtype", "fp16", *(["--queries", queries] if queries else []),
                ]  # fmt: skip
                done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, check=True)
                answer = json.loads(done.stdout)["answer"]
                stored = answer["stored_query_bytes"]
                cache = answer["peak_compressed"]["bytes"] - stored
                beside = stored + answer["query_bytes"] + answer["history_bytes"]
                whole = cache if policy == "none" else whole
                name = policy if policy == "none" else f"{policy}, c={c}{', online' if queries == 'online' else ''}"
                sizes = [f"{size / 2**20:.1f}" for size in (cache, beside)]
                rows.append([MODELS[model], str(interval), name, *sizes, f"{(cache + beside) / whole:.2f}"])
    print(table(["model", "P", "policy", "cache, MiB", "beside it, MiB", "of the whole cache"], rows))


def main() -> int:
    parser = cells.arguments(__doc__)
    tables = {
        "policies": policies,
        "histories": histories,
        "intervals": intervals,
        "defaults": defaults,
        "options": options_search,
        "memory": memory,
    }
    parser.add_argument("table", choices=tables)
    options = parser.parse_args()
    tables[options.table](options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
