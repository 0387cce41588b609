"""Shared by all tests: the seed of a run, and the command as a user runs it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from reasoning_rpc_export.cli import main

SEED = int(os.environ.get("SEED") or random.SystemRandom().getrandbits(32))
GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden"


def pytest_report_header(config: pytest.Config) -> str:
    return f"random inputs: SEED={SEED} replays them"


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Fresh in every run, and different for every test of it."""
    return np.random.default_rng([SEED, *request.node.nodeid.encode()])


@dataclass(frozen=True)
class Outcome:
    code: int
    stderr: str


def run_export(*arguments: object) -> Outcome:
    """The command's main function; stderr is no terminal, so there is no progress bar."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as exit:  # argparse, on wrong usage
            code = exit.code
    assert stdout.getvalue() == ""
    return Outcome(code, stderr.getvalue())


def export_to(source: Path, dest: Path, weights: str = "fp32", flavour: str = "cached") -> dict:
    """Runs the command, which must succeed silently, and returns the manifest."""
    outcome = run_export(source, dest, "--weights", weights, "--flavour", flavour)
    assert outcome == Outcome(0, "")
    return json.loads((dest / "manifest.json").read_text())


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real model that the golden data in tests/golden/smollm2 was made with."""
    path = os.environ.get("RRPC_SMOLLM2_GGUF")
    if not path or not Path(path).is_file():
        pytest.fail("set RRPC_SMOLLM2_GGUF to SmolLM2-135M-Instruct.Q4_1.gguf (the Makefile fetches it into models/)")
    return Path(path)
