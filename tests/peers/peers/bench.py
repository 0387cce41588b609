"""make bench: every engine on the same weights, in turns, and a report of it.

Each engine is a process of its own, pinned alike, and stopped while another is measured. A round visits every length
and, at each, every engine; figures are medians over rounds of the medians of a visit's steps. Sections:

decode   one core, one row: ms/token against cache length, and with caches held at 2,048 entries
prefill  all cores: seconds until the first token of a prompt
batch    all cores, 1 and 4 rows: tokens/s and resident memory at long caches, with and without RPC
rpc      one core: RPC against our own full cache over 32,768 generated tokens, where weights, head and cache keep the
         proportion of 28 layers; beside it what the bytes read predict
smollm2  one core: the real SmolLM2-135M, which llama.cpp reads as it is
whole    not unless asked for, some 45 minutes: that answer of 32,768 tokens in full, both ways
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from statistics import correlation, median
from typing import Any

from . import machine, models, report, settings
from .driver import Failed, Setting, Workers

ROOT = Path(__file__).resolve().parents[3]
SECTIONS = ("decode", "prefill", "batch", "rpc", "smollm2")
GENERATED, GIVEN = 32768, 256
# A step of ours, and what lies in it.
PARTS = ("step_seconds", "attention_seconds", "product_seconds")


class Bench:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.quick: bool = arguments.quick
        self.folder: Path = arguments.models
        self.only: list[str] = arguments.engines
        self.rounds: int = arguments.rounds or (1 if self.quick else 3)
        self.steps = 6 if self.quick else 10
        cores = sorted(os.sched_getaffinity(0))
        # The last one: interrupts prefer the first.
        self.one, self.all = str(cores[-1]), ",".join(map(str, cores))
        self.threads = len(cores)
        self.started = time.time()
        self.result: dict[str, Any] = {
            "command": "python -m peers.bench " + " ".join(sys.argv[1:]),
            "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()) + " UTC",
            "machine": machine.describe(),
            "versions": {},
            "failures": {},
            "rounds": self.rounds,
            "bandwidth": {"1": [], str(self.threads): []},
        }

    def say(self, text: str) -> None:
        print(f"[{time.time() - self.started:5.0f} s] {text}", file=sys.stderr, flush=True)

    def chosen(self, group: list[Setting]) -> list[Setting]:
        return [s for s in group if not self.only or any(text.lower() in s.label.lower() for text in self.only)]

    def model(self, name: str, setting: Setting) -> Path:
        return models.paths(self.folder, name)[setting.model]

    def read_memory(self, threads: int) -> None:
        """The machine's read bandwidth, again in each round."""
        rate = machine.bandwidth(self.one if threads == 1 else self.all, threads)
        self.result["bandwidth"][str(threads)].append(rate)

    def finish(self, workers: Workers) -> None:
        self.result["versions"] |= workers.infos
        self.result["failures"] |= workers.failures

    def visit(
        self, workers: Workers, setting: Setting, name: str, rows: int, length: int, **more: int
    ) -> dict[str, Any] | None:
        """Fills the caches, decodes, gives the memory back; None if the engine cannot."""
        if setting.label in workers.failures:
            return None
        try:
            worker = workers.get(setting, self.model(name, setting))
            worker.ask("fill", rows=rows, length=length, **more)
            before = worker.ask("stats") if setting.ours else {}
            reply = worker.ask("decode", steps=self.steps)
            if setting.ours:
                reply["stats"] = worker.ask("stats")
                reply["parts"] = {part: reply["stats"][part] - before[part] for part in PARTS}
            worker.ask("release")
        except Failed as error:
            workers.fail(setting, error)
            return None
        return reply

    def sweep(
        self,
        name: str,
        group: list[Setting],
        lengths: list[int],
        rows: int,
        workers: Workers,
        most_rounds: int = 9,
    ) -> dict[str, Any]:
        """{label: {length: {"seconds": [one per round], "memory": bytes}}}; a length is that of the text."""
        table: dict[str, Any] = {}
        rounds = min(self.rounds, most_rounds)
        for turn in range(rounds):
            self.read_memory(workers.threads)
            for length in lengths:
                for setting in group:
                    more = {"given": GIVEN} if setting.compresses else {}
                    reply = self.visit(workers, setting, name, rows, length, **more)
                    if reply is not None:
                        self.record(table, setting, length, reply)
                self.say(f"{name}: round {turn + 1}/{rounds}, {rows} x {length}")
        return table

    @staticmethod
    def record(table: dict[str, Any], setting: Setting, length: int, reply: dict[str, Any]) -> None:
        cell = table.setdefault(setting.label, {}).setdefault(str(length), {"seconds": [], "steps": [], "memory": 0})
        cell["seconds"].append(median(reply["seconds"]))
        cell["steps"] += reply["seconds"]
        cell["memory"] = max(cell["memory"], reply["memory"]["peak"])
        if "stats" in reply:
            cell["cache_bytes"] = reply["stats"]["cache_bytes"]
            for part, seconds in reply["parts"].items():
                parts = cell.setdefault("parts", dict.fromkeys(PARTS, 0.0))
                parts[part] += seconds

    # Sections

    def decode(self) -> None:
        models.make(models.MAIN, self.folder)
        name = models.MAIN.name
        lengths = [256, 32768] if self.quick else [256, 4096, 16384, 32768]
        with Workers(self.one, 1) as workers:
            table = self.sweep(name, self.chosen(settings.DECODE), lengths, 1, workers)
            held: dict[str, Any] = {}
            for _ in range(self.rounds):
                for setting in self.chosen(settings.HELD_AT_2048[: 2 if self.quick else None]):
                    length, more = 30000, {}
                    if setting.ours:
                        length = settings.HELD_GIVEN + settings.HELD_GENERATED
                        more = {"given": settings.HELD_GIVEN}
                    reply = self.visit(workers, setting, name, 1, length, **more)
                    if reply is not None:
                        self.record(held, setting, settings.HELD_ENTRIES, reply)
            self.say("held at 2,048 entries")
            ours = settings.OURS_HELD
            if ours.label in workers.workers:
                schedule = settings.schedule(ours)
                generated = schedule.due_at(schedule.compressions(settings.HELD_GENERATED))
                held[ours.label]["compaction"] = self.compaction(
                    workers, ours, name, 1, settings.HELD_GIVEN, generated
                )
            self.finish(workers)
        self.result["decode"] = {"shape": name, "lengths": lengths, "full": table, "held": held}
        self.result["decode"]["weight_bytes"] = self.weight_bytes(name)

    def compaction(
        self, workers: Workers, setting: Setting, name: str, rows: int, given: int, generated: int
    ) -> float | None:
        """Seconds of the compression of each row that is due at `generated` tokens."""
        worker = workers.workers[setting.label]
        steps = 4
        try:
            worker.ask("fill", rows=rows, length=given + generated - steps // 2, given=given)
            before = worker.ask("stats")
            worker.ask("decode", steps=steps, warmup=0)
            after = worker.ask("stats")
            worker.ask("release")
        except Failed as error:
            workers.fail(setting, error)
            return None
        if after["compressions"] != before["compressions"] + 1:
            raise RuntimeError(f"{setting.label}: expected one compression at {generated}, found {before}, {after}")
        return after["compaction_seconds"] - before["compaction_seconds"]

    def weight_bytes(self, name: str) -> dict[str, float]:
        """Bytes of weights that a token reads, by kind of model: of ours what the file holds, a tied head once."""
        shape = next(shape for shape in (models.MAIN, models.PROPORTIONAL) if shape.name == name)
        ours = (models.paths(self.folder, name)["ours"] / "model.onnx.data").stat().st_size
        return {
            "ours": ours,
            "gguf": shape.weight_bytes(),
            "openvino": shape.weight_bytes(),
            "onnx-fp32": shape.weight_bytes(scale_bytes=4),
            "onnx-int8": shape.weight_bytes(scale_bytes=4),
        }

    def prefill(self) -> None:
        models.make(models.MAIN, self.folder)
        name = models.MAIN.name
        lengths = [256] if self.quick else [256, 4096]
        table: dict[str, Any] = {}
        answers: dict[str, Any] = {}
        with Workers(self.all, self.threads) as workers:
            for turn in range(self.rounds):
                # The long one takes most of a minute, and repeats itself to within a percent or two.
                for length in lengths if turn == 0 else lengths[:1]:
                    for setting in self.chosen(settings.PREFILL):
                        if setting.label in workers.failures:
                            continue
                        try:
                            worker = workers.get(setting, self.model(name, setting))
                            if turn == 0 and length == lengths[0]:
                                worker.ask("prefill", tokens=256)  # packs weights
                            reply = worker.ask("prefill", tokens=length)
                        except Failed as error:
                            workers.fail(setting, error)
                            continue
                        table.setdefault(setting.label, {}).setdefault(str(length), []).append(reply["seconds"])
                        if turn == 0 and length == lengths[0]:
                            answers[setting.label] = reply
                    self.say(f"prefill: round {turn + 1}/{self.rounds}, {length}")
            self.finish(workers)
        agreement = agreements(answers)
        self.result["prefill"] = {
            "shape": name,
            "lengths": lengths,
            "seconds": table,
            "threads": self.threads,
            "agreement": agreement,
        }

    def batch(self) -> None:
        models.make(models.MAIN, self.folder)
        name = models.MAIN.name
        lengths = [32768] if self.quick else [8192, 16384, 32768]
        tables: dict[str, Any] = {}
        for rows in (1, 4):
            with Workers(self.all, self.threads) as workers:
                table = self.sweep(name, self.chosen(settings.BATCH), lengths, rows, workers, most_rounds=2)
                rpc = settings.OURS_RPC
                schedule = settings.schedule(rpc)
                for length in lengths if rpc.label in table else []:
                    due = schedule.due_at(schedule.compressions(length - GIVEN))
                    table[rpc.label][str(length)]["compaction"] = self.compaction(workers, rpc, name, rows, GIVEN, due)
                tables[str(rows)] = table
                self.finish(workers)
        short: dict[str, Any] = {}
        with Workers(self.all, self.threads) as workers:
            for rows in (1, 8):
                short[str(rows)] = self.sweep(name, self.chosen(settings.BATCH[:1] + settings.BATCH[2:]), [256], rows, workers)
            self.finish(workers)
        self.result["batch"] = {
            "shape": name,
            "lengths": lengths,
            "rows": tables,
            "short": short,
            "threads": self.threads,
        }

    def rpc(self) -> None:
        shape = models.PROPORTIONAL
        models.make(shape, self.folder, ("ours",))
        name = shape.name
        schedule = settings.schedule(settings.OURS_RPC)
        samples = schedule.samples(GENERATED, 3 if self.quick else 9)
        weights = self.weight_bytes(name)["ours"]
        entry = shape.entry_bytes(settings.OURS.element_bytes)
        out: dict[str, Any] = {"shape": name, "samples": samples, "given": GIVEN, "generated": GENERATED, "rows": {}}
        for rows in (1, 4):
            with Workers(self.one, 1) as workers:
                table: dict[str, Any] = {}
                for turn in range(self.rounds):
                    self.read_memory(1)
                    for generated in samples:
                        for setting in (settings.OURS, settings.OURS_RPC):
                            more = {"given": GIVEN} if setting.compresses else {}
                            reply = self.visit(workers, setting, name, rows, GIVEN + generated, **more)
                            if reply is None:
                                raise SystemExit(workers.failures[setting.label])
                            self.record(table, setting, generated, reply)
                    self.say(f"rpc: {rows} rows, round {turn + 1}/{self.rounds}")
                compactions = {}
                last = schedule.compressions(GENERATED) - 1
                for done in sorted({0, last // 2, last}):
                    due = schedule.due_at(done)
                    compactions[str(done)] = self.compaction(workers, settings.OURS_RPC, name, rows, GIVEN, due)
                self.finish(workers)
            predicted = schedule.predicted_ratio(GENERATED, GIVEN, weights, entry, rows)
            out["rows"][str(rows)] = {"table": table, "compactions": compactions, "predicted": predicted}
        self.result["rpc"] = out

    def smollm2(self) -> None:
        gguf = Path(os.environ.get("RRPC_SMOLLM2_GGUF", ROOT / "models/SmolLM2-135M-Instruct.Q4_1.gguf"))
        models.make_smollm2(gguf, self.folder)
        lengths = [256, 7936] if self.quick else [256, 4096, 7936]
        with Workers(self.one, 1) as workers:
            table = self.sweep(models.SMOLLM2, self.chosen(settings.SMOLLM2), lengths, 1, workers)
            self.finish(workers)
        self.result["smollm2"] = {"lengths": lengths, "full": table}

    def whole(self) -> None:
        """The answer that `rpc` samples, token for token, both ways in turns of one interval."""
        shape = models.PROPORTIONAL
        models.make(shape, self.folder, ("ours",))
        interval = settings.RPC["interval"]
        group = (settings.OURS, settings.OURS_RPC)
        seconds: dict[str, list[float]] = {setting.label: [] for setting in group}
        stats: dict[str, Any] = {}
        with Workers(self.one, 1) as workers:
            for setting in group:
                worker = workers.get(setting, self.model(shape.name, setting))
                worker.ask("fill", rows=1, length=GIVEN)
            for turn in range(GENERATED // interval):
                self.read_memory(1)
                for setting in group:
                    worker = workers.workers[setting.label]
                    seconds[setting.label].append(sum(worker.ask("decode", steps=interval, warmup=0)["seconds"]))
                    stats[setting.label] = worker.ask("stats")
                self.say(f"whole: {(turn + 1) * interval} tokens")
            self.finish(workers)
        schedule = settings.schedule(settings.OURS_RPC)
        weights = self.weight_bytes(shape.name)["ours"]
        entry = shape.entry_bytes(settings.OURS.element_bytes)
        self.result["whole"] = {
            "shape": shape.name,
            "given": GIVEN,
            "generated": GENERATED,
            "seconds": seconds,
            "stats": stats,
            "predicted": schedule.predicted_ratio(GENERATED, GIVEN, weights, entry, 1),
            # Keys, values and a position of 4 bytes for each KV head of each layer, in whole blocks.
            "peak_bytes": blocks(GIVEN + schedule.peak(GENERATED)) * (entry + 4 * shape.layers * shape.kv_heads),
        }

    def run(self, sections: list[str]) -> None:
        machine.build_bandwidth()
        for threads in {1, self.threads}:
            self.read_memory(threads)
        for section in sections:
            getattr(self, section)()
        for threads in {1, self.threads}:
            self.read_memory(threads)
        self.result["minutes"] = (time.time() - self.started) / 60


def blocks(entries: int, block: int = 64) -> int:
    """Entries of the whole blocks that hold so many."""
    return -(-entries // block) * block


def agreements(answers: dict[str, Any]) -> dict[str, float]:
    """Whether all had the same weights: correlation of each one's logits with the first one's.

    Engines that round activations to 8 bits differ in the third digit; other weights correlate to nothing.
    """
    found: dict[str, float] = {}
    first: list[float] | None = None
    for label, reply in answers.items():
        logits = reply["logits"]
        if len(set(logits)) <= 2:  # a pipeline that gives no logits, only the most probable token
            continue
        first = first or logits
        found[label] = correlation(first, logits)
    wrong = {label: value for label, value in found.items() if value < 0.99}
    if wrong:
        raise SystemExit(f"engines with other weights: correlation of logits {wrong}, expected 0.99 or more")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, without the long prompts: some 5 minutes")
    parser.add_argument("--rounds", type=int, help="default 3, or 1 if quick")
    parser.add_argument("--sections", nargs="+", choices=[*SECTIONS, "whole"], default=list(SECTIONS))
    parser.add_argument("--engines", nargs="+", default=[], help="settings whose label contains one of these")
    parser.add_argument("--models", type=Path, default=ROOT / "models/peers", help="where the models are made")
    parser.add_argument("--out", type=Path, default=ROOT / "target/peers", help="folder of the report")
    arguments = parser.parse_args()
    bench = Bench(arguments)
    bench.run(arguments.sections)
    print(report.write(bench.result, arguments.out))


if __name__ == "__main__":
    main()
