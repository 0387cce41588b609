"""Writes the programs of README.md to files: its fenced blocks of C, C++ and Go, each a whole program.

Usage: readme.py README DEST. It prints "LANGUAGE FILE" for each.
"""

import pathlib
import re
import sys

ENTRY = {"c": "int main(", "cpp": "int main(", "go": "func main("}
LINES = 30


def main(readme: str, dest: str) -> None:
    text = pathlib.Path(readme).read_text()
    seen = set()
    for language, code in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if language not in ENTRY:
            continue
        assert ENTRY[language] in code, f"a block of {language} is no whole program:\n{code}"
        assert code.count("\n") <= LINES, f"a program of {language} has {code.count(chr(10))} lines, more than {LINES}"
        assert language not in seen, f"two programs of {language}"
        seen.add(language)
        file = pathlib.Path(dest) / language / f"main.{language}"
        file.parent.mkdir(parents=True)
        file.write_text(code)
        print(language, file)
    assert seen == ENTRY.keys(), f"programs: expected {sorted(ENTRY)}, found {sorted(seen)}"


if __name__ == "__main__":
    main(*sys.argv[1:])
