"""Worker processes, asked in turns."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]
# A prefill of 4,096 tokens on one core is the longest that any of them is asked.
MOST_SECONDS = 900
# Builds of ONNX Runtime report to their maker unless told.
ENVIRONMENT = os.environ | {"ORT_DISABLE_TELEMETRY": "1"}


class Failed(Exception):
    pass


@dataclass(frozen=True)
class Setting:
    """An engine as it is measured."""

    label: str
    engine: str  # a key of engines.MODULES
    model: str  # the kind of model that it reads, a key of models.paths
    settings: dict[str, Any] = field(default_factory=dict)
    element_bytes: float = 2  # of its cache, scales included

    @property
    def ours(self) -> bool:
        return self.engine == "ours"

    @property
    def compresses(self) -> bool:
        return "policy" in self.settings


class Worker:
    """One process. Between requests it is stopped, so that no pool of its threads spins beside another's measurement."""

    def __init__(self, setting: Setting, model: Path, cores: str, threads: int) -> None:
        self.setting = setting
        command = ["taskset", "-c", cores, sys.executable, "-m", "peers.worker"]
        self.log = (PACKAGE.parents[1] / "target/peers" / f"{setting.label.replace('/', '-')}.log").open("w")
        self.process = subprocess.Popen(
            command, cwd=PACKAGE, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True
        )
        opened = self.ask("open", name=setting.engine, model=str(model), threads=threads, settings=setting.settings)
        self.info, self.open_seconds = opened["info"], opened["seconds"]

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        self.signal(signal.SIGCONT)
        try:
            self.process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
            self.process.stdin.flush()
            ready, _, _ = select.select([self.process.stdout], [], [], MOST_SECONDS)
            line = self.process.stdout.readline() if ready else ""
        except BrokenPipeError:
            line = ""
        if not line:
            self.close()
            raise Failed(f"{self.setting.label}: {what} {arguments}: the process gave no answer ({self.log.name})")
        self.signal(signal.SIGSTOP)
        reply = json.loads(line)
        for trouble in ("unsupported", "error"):
            if trouble in reply:
                raise Failed(f"{self.setting.label}: {what} {arguments}: {trouble}: {reply[trouble]}")
        return reply

    def signal(self, number: int) -> None:
        if self.process.poll() is None:
            os.kill(self.process.pid, number)

    def close(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait()
        self.log.close()


class Workers:
    """The workers of one section; a setting whose engine fails is left out, with its reason in `failures`."""

    def __init__(self, cores: str, threads: int) -> None:
        self.cores, self.threads = cores, threads
        self.workers: dict[str, Worker] = {}
        self.failures: dict[str, str] = {}
        self.infos: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers.values():
            worker.close()

    def get(self, setting: Setting, model: Path) -> Worker:
        if setting.label not in self.workers:
            worker = Worker(setting, model, self.cores, self.threads)
            self.workers[setting.label] = worker
            self.infos[setting.label] = worker.info
        return self.workers[setting.label]

    def fail(self, setting: Setting, error: Failed) -> None:
        print(f"  {error}", file=sys.stderr)
        self.failures[setting.label] = str(error)
        worker = self.workers.pop(setting.label, None)
        if worker is not None:
            worker.close()
