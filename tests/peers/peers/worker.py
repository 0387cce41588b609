"""A process with one engine. Requests and replies are JSON, one to a line; see `bench.Worker`."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from typing import Any

from .engines import MODULES
from .engines.base import Unsupported


def memory() -> dict[str, int]:
    """Bytes: resident now, at most since the last reset, and what of the present belongs to no file."""
    with open("/proc/self/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    names = {"resident": "VmRSS", "peak": "VmHWM", "anonymous": "RssAnon"}
    return {name: int(fields[field].split()[0]) * 1024 for name, field in names.items()}


def reset_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


# Enough to tell whether two engines have the same weights.
LOGITS_SHOWN = 512


class Commands:
    def __init__(self) -> None:
        self.engine: Any = None

    def open(self, name: str, model: str, threads: int, settings: dict[str, Any]) -> dict[str, Any]:
        module = importlib.import_module(f"{__package__}.engines.{MODULES[name]}")
        start = time.perf_counter()
        self.engine = module.Engine(model, threads, **settings)
        return {"seconds": time.perf_counter() - start, "info": self.engine.info()}

    def prefill(self, tokens: int) -> dict[str, Any]:
        start = time.perf_counter()
        logits = self.engine.prefill(tokens)
        top = int(logits.argmax())
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "top": top, "logits": [round(float(x), 4) for x in logits[:LOGITS_SHOWN]]}

    def fill(self, rows: int, length: int, **more: int) -> dict[str, Any]:
        start = time.perf_counter()
        self.engine.fill(rows, length, **more)
        return {"seconds": time.perf_counter() - start}

    def decode(self, steps: int, warmup: int = 2) -> dict[str, Any]:
        for _ in range(warmup):
            self.engine.step()
        reset_peak()
        times = []
        for _ in range(steps):
            start = time.perf_counter()
            self.engine.step()
            times.append(time.perf_counter() - start)
        return {"seconds": times, "memory": memory()}

    def release(self) -> dict[str, Any]:
        self.engine.release()
        return {}

    def stats(self) -> dict[str, Any]:
        return self.engine.stats()


def main() -> None:
    # Engines write to standard output as they like: replies go through a copy of it.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    commands = Commands()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = getattr(commands, request.pop("do"))(**request)
        except Unsupported as error:
            reply = {"unsupported": str(error)}
        except Exception as error:  # noqa: BLE001: whatever an engine raises is for the driver
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies)


if __name__ == "__main__":
    main()
