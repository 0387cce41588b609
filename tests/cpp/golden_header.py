"""Writes a golden generation as a C++ header: the prompt, the ids, what each compression kept.

Usage: golden_header.py EXPECTED_JSON > golden.hpp
"""

import json
import pathlib
import sys


def numbers(values: list[int]) -> str:
    return "{" + ", ".join(map(str, values)) + "}"


def positions_of(expected: dict) -> list[list[list[int]]]:
    """The kept sets as text positions. Golden sets count candidates: what was kept before, then what
    has left the window since."""
    prompt, interval = len(expected["prompt"]), expected["P"]
    log = expected["results"]["rpc"]["compressions"]
    layers = 1 + max(record["layer"] for record in log)
    candidates_of: dict[tuple[int, int], list[int]] = {}
    done_of: dict[tuple[int, int], int] = {}
    result = []
    for index, record in enumerate(log):
        window = prompt + (index // layers + 1) * interval
        sets = []
        for one, kept in enumerate(record["kept"]):
            key = record["layer"], one
            candidates = [*candidates_of.get(key, []), *range(done_of.get(key, prompt), window)]
            candidates_of[key], done_of[key] = [candidates[entry] for entry in kept], window
            sets.append(candidates_of[key])
        result.append(sets)
    return result


def main(path: str) -> None:
    expected = json.loads(pathlib.Path(path).read_text())
    assert (expected["aggregation"], expected["pooling"]) == ("all", "avgpool")
    print("#pragma once\n#include <cstdint>\n#include <vector>\nnamespace golden {")
    for name in ("P", "R", "c", "kernel_size"):
        print(f"inline constexpr std::uint32_t {name} = {expected[name]};")
    print(f"inline const std::vector<std::uint32_t> prompt{numbers(expected['prompt'])};")
    for mode in ("full", "rpc"):
        print(f"inline const std::vector<std::uint32_t> {mode}{numbers(expected['results'][mode]['tokens'])};")
    print("struct record { std::uint32_t layer; std::uint64_t before, after; std::vector<std::vector<std::uint32_t>> kept; };")
    print("inline const std::vector<record> compressions{")
    for record, sets in zip(expected["results"]["rpc"]["compressions"], positions_of(expected), strict=True):
        lengths = f"{record['layer']}, {record['cache_len_before']}, {record['cache_len_after']}"
        print(f"    {{{lengths}, {{{', '.join(map(numbers, sets))}}}}},")
    print("};\n}")


if __name__ == "__main__":
    main(sys.argv[1])
