"""Problems whose reasoning is long and has one right text: definitions to look up, compute, re-check and recap.

A problem defines variables one after the other, each a digit or the sum or difference of two earlier ones, modulo 10.
Between the definitions it asks, at random, for earlier variables to be re-checked or recapped. The last definition is
marked with `!`; its value is the answer.

    problem     b=3;k=8;h=k+b;?h;v=b-k;#k;!m=v+h;>
    reasoning   b=3;k=8;h=k+b=8+3=1;?h=k+b=8+3=1;v=b-k=3-8=5;#k=8;!m=v+h=5+1=6;

The problem has every definition, so that one can be looked up at any time; values of variables that are computed stand
in the reasoning alone. One character is one token.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass

NAMES = string.ascii_letters
END = "<|end|>"
# The order decides the ids; the end comes last.
CHARACTERS = string.digits + NAMES + "=+-;?#!>"
IDS = {character: index for index, character in enumerate(CHARACTERS)}
END_ID = len(CHARACTERS)
VOCABULARY = 80  # rounded up

LEAVES = 3  # the first definitions are digits
LEAF_SHARE = 0.15  # of the later ones
RECHECK_SHARE = RECAP_SHARE = 0.3  # behind a definition


@dataclass(frozen=True)
class Problem:
    """A problem, its one right reasoning, and the value of the last variable."""

    prompt: str
    reasoning: str
    answer: int


def make_problem(generator: random.Random, definitions: int) -> Problem:
    """A problem of so many definitions (4 to 52)."""
    if not LEAVES < definitions <= len(NAMES):
        raise ValueError(f"definitions: expected {LEAVES + 1} to {len(NAMES)}, found {definitions}")
    names = generator.sample(NAMES, definitions)
    values: dict[str, int] = {}
    worked: dict[str, str] = {}  # what a definition comes to, written out
    asked: set[str] = set()
    prompt: list[str] = []
    reasoning: list[str] = []

    def write(item: str, line: str) -> None:
        prompt.append(f"{item};")
        reasoning.append(f"{line};")

    for index, name in enumerate(names):
        mark = "!" if index + 1 == definitions else ""
        if index < LEAVES or (not mark and generator.random() < LEAF_SHARE):
            values[name] = generator.randrange(10)
            definition = worked[name] = f"{name}={values[name]}"
        else:
            left, right = generator.sample(names[:index], 2)
            sign = generator.choice("+-")
            values[name] = (values[left] + (values[right] if sign == "+" else -values[right])) % 10
            definition = f"{name}={left}{sign}{right}"
            worked[name] = f"{definition}={values[left]}{sign}{values[right]}={values[name]}"
        write(mark + definition, mark + worked[name])
        for kind, share in (("?", RECHECK_SHARE), ("#", RECAP_SHARE)):
            free = [other for other in names[: index + 1] if kind + other not in asked]
            if mark or not free or generator.random() >= share:
                continue
            other = generator.choice(free)
            asked.add(kind + other)
            line = worked[other] if kind == "?" else f"{other}={values[other]}"
            write(kind + other, kind + line)
    return Problem("".join(prompt) + ">", "".join(reasoning), values[names[-1]])


def first_error(problem: str, reasoning: str) -> int | None:
    """The index of the first character that is wrong, or missing, or too much; None if the reasoning is right.

    Worked out from the problem's text alone.
    """
    expected = solve(problem)
    for index, (found, right) in enumerate(zip(reasoning, expected)):
        if found != right:
            return index
    return None if len(reasoning) == len(expected) else min(len(reasoning), len(expected))


def solve(problem: str) -> str:
    """The one right reasoning of a problem's text."""
    values: dict[str, int] = {}
    worked: dict[str, str] = {}
    lines = []
    for item in problem.removesuffix(">").split(";")[:-1]:
        if item[0] == "?":
            lines.append("?" + worked[item[1]])
            continue
        if item[0] == "#":
            lines.append(f"{item}={values[item[1]]}")
            continue
        mark, definition = ("!", item[1:]) if item[0] == "!" else ("", item)
        name, right = definition[0], definition[2:]
        if len(right) == 1:
            values[name], worked[name] = int(right), definition
        else:
            left, other = values[right[0]], values[right[2]]
            values[name] = (left + other if right[1] == "+" else left - other) % 10
            worked[name] = f"{definition}={left}{right[1]}{other}={values[name]}"
        lines.append(mark + worked[name])
    return "".join(f"{line};" for line in lines)


def encode(text: str) -> list[int]:
    """Token ids of a text of known characters."""
    return [IDS[character] for character in text]
