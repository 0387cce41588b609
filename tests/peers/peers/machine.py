"""What the figures were measured on, and how fast it reads memory."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SOURCE = Path(__file__).resolve().parents[1] / "bandwidth.c"
PROGRAM = ROOT / "target/peers/bandwidth"


def build_bandwidth() -> None:
    PROGRAM.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cc", "-O3", "-march=native", "-pthread", SOURCE, "-o", PROGRAM], check=True)


def bandwidth(cores: str, threads: int, seconds: float = 1.0) -> float:
    """Bytes a second that plain reading reaches."""
    command = ["taskset", "-c", cores, PROGRAM, str(threads), str(seconds)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) * 1e9


def describe() -> dict[str, str]:
    cpu = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    cpu = {name.strip(): value.strip() for name, value in cpu.items()}
    memory = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    flags = [flag for flag in ("avx2", "f16c", "avx512f", "avx512_vnni", "amx_int8") if flag in cpu.get("flags", "")]
    name = cpu.get("model name", "?")
    return {
        "cpu": f"{name}, family {cpu.get('cpu family', '?')} model {cpu.get('model', '?')} ({', '.join(flags)})",
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{int(memory['MemTotal'].split()[0]) / (1 << 20):.0f} GiB",
        "system": platform.platform(),
        "commit": git("rev-parse", "--short=10", "HEAD") + (" with changes" if git("status", "--porcelain") else ""),
    }


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()
