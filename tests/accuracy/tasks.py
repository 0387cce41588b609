"""The tables of docs/accuracy.md on tasks, in Markdown.

    tasks.py humaneval|ifeval --benchmarks DIR --models DIR [--results DIR] [--only POLICY ...] [--limit N] [--print]

humaneval: Qwen2.5-Coder-0.5B continues the functions of DIR/humaneval.jsonl, which scripts/fetch-humaneval fetches;
P = 32, R = 16. ifeval: SmolLM2-135M answers DIR/ifeval.jsonl in up to 512 tokens; P = 64, R = 16. Greedy, every policy
at c = 4, rpc and random also at 2 and 8. The models are --models DIR/qwen25coder-int8 and DIR/smollm2-int4, whose
weights are those of its file (Q4_1). Answers are those of `reasoning-rpc eval`, one policy after the other in the order
of the table; those that --results has are taken as they are. A policy without answers is printed as not run; one that
has some is compared on those. A benchmark's file or a model that is absent is an error.
"""

import json
import math
import subprocess
import sys

import cells

TASKS = {
    "humaneval": ("qwen25coder-int8", ["--interval", 32, "--window", 16, "--max-tokens", 512]),
    "ifeval": ("smollm2-int4", ["--interval", 64, "--window", 16, "--max-tokens", 512]),
}
NONE = "none"
# In the order in which they are run.
POLICIES = [
    NONE,
    "rpc:ratio=4",
    "lookahead-merge:aggregation=adaptive:ratio=4",
    "lookahead-merge:queries=online:aggregation=adaptive:ratio=4",
    "lookahead-merge:aggregation=adaptive:similarity=cosine:ratio=4",
    "lookahead-merge:queries=online:aggregation=adaptive:similarity=cosine:ratio=4",
    "lookahead-merge:aggregation=kv_head:similarity=cosine:ratio=4",
    "random:ratio=4",
    "snapkv:ratio=4",
    "rpc:ratio=8",
    "random:ratio=8",
    "rpc:ratio=2",
    "random:ratio=2",
    "rpc:aggregation=kv_head:ratio=4",
    "lookahead:aggregation=kv_head:ratio=4",
    "streaming:ratio=4",
    "r-kv:ratio=4",
    "h2o:ratio=4",
    "tova:ratio=4",
]


def run(task, options):
    model, setting = TASKS[task]
    folder, problems = options.models / model, options.benchmarks / f"{task}.jsonl"
    cells.need(options.program, folder / "manifest.json", problems)
    for policy in POLICIES:
        if not all(word in policy for word in options.only):
            continue
        command = [
            options.program, "eval", "--model", folder, "--problems", problems, "--policies", policy, *setting,
            "--rows", options.rows, "--threads", options.threads, "--out", options.results / task,
            *(["--limit", options.limit] if options.limit else []),
        ]  # fmt: skip
        print(f"{task}: {policy}", file=sys.stderr, flush=True)
        done = subprocess.run([str(word) for word in command], stdout=subprocess.DEVNULL)
        if done.returncode:
            sys.exit(done.returncode)


def answers(task, options):
    """The answers of each policy, by problem."""
    found = {policy: {} for policy in POLICIES}
    path = options.results / task / "answers.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        answer = json.loads(line)
        found.get(answer["policy"], {})[answer["problem"]] = answer
    return found


def figures(answer):
    """Right, tokens, ended by itself, compressions, peak bytes."""
    ended = answer["stop_reason"] in ("eos", "stop")
    return [answer["score"]["passed"], answer["tokens"], ended, answer["compressions"], answer["cache_peak_bytes"]]


def wilson(share, count):
    """Wilson's score interval, 95%."""
    z = 1.959964
    center = share + z * z / (2 * count)
    reach = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return [(center + sign * reach) / (1 + z * z / count) for sign in (-1, 1)]


def mcnemar(worse, better):
    """Exact and two-sided."""
    n, least = worse + better, min(worse, better)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(least + 1)) / 2**n)


def row(policy, these, full, total):
    if not these:
        return [policy, *["not run"] * 9]
    right = {name: answer["score"]["passed"] for name, answer in these.items()}
    whole = {name: full[name]["score"]["passed"] for name in these if name in full}
    share = sum(right.values()) / len(right)
    low, high = wilson(share, len(right))
    mean = lambda of: sum(of(answer) for answer in these.values()) / len(these)
    paired = [""] * 3
    if policy != NONE and whole:
        worse = sum(whole[name] and not right[name] for name in whole)
        better = sum(right[name] and not whole[name] for name in whole)
        paired = [str(better), str(worse), f"{mcnemar(worse, better):.3f}"]
    return [
        policy,
        f"{len(these)} of {total}",
        f"{share:.1%} ({low:.1%} to {high:.1%})",
        *paired,
        f"{mean(lambda a: a['stop_reason'] in ('eos', 'stop')):.0%}",
        f"{mean(lambda a: a['tokens']):.0f}",
        f"{mean(lambda a: a['compressions']):.1f}",
        f"{mean(lambda a: a['cache_peak_bytes']) / 2**20:.2f}",
    ]


def main() -> int:
    parser = cells.arguments(__doc__)
    parser.add_argument("table", choices=TASKS)
    parser.add_argument("--limit", type=int, help="the first N problems")
    parser.add_argument("--rows", type=int, default=8, help="answers written at once [8]")
    options = parser.parse_args()
    if not options.print:
        run(options.table, options)
    problems = options.benchmarks / f"{options.table}.jsonl"
    cells.need(problems)
    total = sum(bool(line.strip()) for line in problems.read_text().splitlines())
    found = answers(options.table, options)
    head = ["policy", "problems", "right (95%)", "better", "worse", "p", "finished", "tokens", "compressions"]
    head.append("peak, MiB")
    rows = [row(policy, found[policy], found[NONE], total) for policy in POLICIES]
    print(cells.table(head, rows))
    # Problems on which nothing is compressed say nothing of compression.
    setting = TASKS[options.table][1]
    first = setting[1] + setting[3]
    long = {name for name, answer in found[NONE].items() if answer["tokens"] > first}
    print(f"The {len(long)} problems whose answer with the whole cache has more than P + R = {first} tokens:\n")
    for policy in POLICIES:
        found[policy] = {name: answer for name, answer in found[policy].items() if name in long}
    print(cells.table(head, [row(policy, found[policy], found[NONE], len(long)) for policy in POLICIES]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
