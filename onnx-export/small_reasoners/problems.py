"""Problems whose reasoning is long and has one right text: definitions to look up, compute, re-check and recap.

The lines of a problem are labelled A, B, C ... and define variables one after the other, each a digit or the sum or
difference of two earlier ones, modulo 5. Between the definitions, at random, earlier variables are to be re-checked (?)
or recapped (#). The last definition is marked (!); its value is the answer.

    problem     Ab3;Bk4;Ch=k+b;D?h;Ev=b-k;F#k;G!m=v+h;>
    reasoning   Ab3;Bk4;Ch=k+b=k4+b3=h2;D?h=k+b=k4+b3=h2;Ev=b-k=b3-k4=v4;F#k4;G!m=v+h=v4+h2=m1;

The problem has every definition, so that one can be looked up at any time; values of variables that are computed stand
in the reasoning alone. One character is one token.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass

MODULUS = 5
LABELS = string.ascii_uppercase
NAMES = string.ascii_lowercase
END = "<|end|>"
# The order decides the ids; the end comes last.
CHARACTERS = string.digits + LABELS + NAMES + "=+-;?#!>"
IDS = {character: index for index, character in enumerate(CHARACTERS)}
END_ID = len(CHARACTERS)
# So many of these sum a line up, for models that are trained to; the tokenizer does not know it.
GIST_ID = END_ID + 1
GISTS = 2
VOCABULARY = GIST_ID + 1

LEAVES = 3  # the first lines define digits
LEAF_SHARE = 0.15  # of the later definitions
RECHECK_SHARE, RECAP_SHARE = 0.2, 0.15  # of the lines


@dataclass(frozen=True)
class Problem:
    """A problem, its one right reasoning, and the value of the last variable."""

    prompt: str
    reasoning: str
    answer: int


def small_digit(generator: random.Random) -> int:
    """The lesser of two digits. Of numbers that are all as likely, a sum says nothing of either of its two alone, and
    training stands still before it: nothing leads there step by step."""
    return min(generator.randrange(MODULUS), generator.randrange(MODULUS))


def make_problem(generator: random.Random, lines: int) -> Problem:
    """A problem of so many lines, 5 to 26."""
    if not LEAVES + 2 <= lines <= len(LABELS):
        raise ValueError(f"lines: expected {LEAVES + 2} to {len(LABELS)}, found {lines}")
    names = generator.sample(NAMES, len(NAMES))
    values: dict[str, int] = {}
    worked: dict[str, str] = {}  # what a definition comes to, written out
    prompt, reasoning = "", ""
    for index, label in enumerate(LABELS[:lines]):
        mark = "!" if index + 1 == lines else ""
        kind = generator.random()
        if index >= LEAVES and not mark and kind < RECHECK_SHARE + RECAP_SHARE:
            name = generator.choice(list(values))
            request = "?" if kind < RECHECK_SHARE else "#"
            line = worked[name] if request == "?" else f"{name}{values[name]}"
            prompt += f"{label}{request}{name};"
            reasoning += f"{label}{request}{line};"
            continue
        name = names[len(values)]
        if index < LEAVES or (not mark and generator.random() < LEAF_SHARE):
            values[name] = small_digit(generator)
            definition = worked[name] = f"{name}{values[name]}"
        else:
            left, right = generator.sample(list(values), 2)
            sign = generator.choice("+-")
            definition = f"{name}={left}{sign}{right}"
            value = (values[left] + (values[right] if sign == "+" else -values[right])) % MODULUS
            worked[name] = f"{definition}={left}{values[left]}{sign}{right}{values[right]}={name}{value}"
            values[name] = value
        prompt += f"{label}{mark}{definition};"
        reasoning += f"{label}{mark}{worked[name]};"
    return Problem(prompt + ">", reasoning, values[name])


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
    for line in problem.removesuffix(">").split(";")[:-1]:
        item = line[1:].lstrip("?#!")
        head, name, right = line.removesuffix(item), item[0], item[1:]
        if "#" in head:
            lines.append(f"{line}{values[name]}")
            continue
        if right.isdigit():
            values[name], worked[name] = int(right), item
        elif right:
            first, sign, second = right[1:]
            left, other = values[first], values[second]
            values[name] = (left + other if sign == "+" else left - other) % MODULUS
            worked[name] = f"{item}={first}{left}{sign}{second}{other}={name}{values[name]}"
        lines.append(head + worked[name])
    return "".join(f"{line};" for line in lines)


def encode(text: str) -> list[int]:
    """Token ids of a text of known characters."""
    return [IDS[character] for character in text]


def tokens(problem: Problem, gists: int = 0) -> list[int]:
    """The problem, its reasoning with so many gists behind each line, and the end."""
    ids = encode(problem.prompt)
    for line in problem.reasoning.split(";")[:-1]:
        ids += encode(f"{line};") + gists * [GIST_ID]
    return [*ids, END_ID]
