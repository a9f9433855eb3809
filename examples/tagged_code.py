"""Writes the data of examples/token-classification.yaml: lines of the standard library as words,
with the names that are called and those that are defined as entities, as JSON lines.

    python3 examples/tagged_code.py > /tmp/tagged-code.jsonl
"""

import io
import json
import keyword
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

PACKAGES = ("json", "logging", "email")
WORDS_MIN, WORDS_MAX = 4, 40


def lines(file: Path) -> Iterator[list[str]]:
    """The words of each line of code."""
    text = file.read_text(encoding="utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    wanted = (tokenize.NAME, tokenize.OP, tokenize.NUMBER)
    for _, line in groupby((t for t in tokens if t.type in wanted), key=lambda t: t.start[0]):
        words = [token.string for token in line]
        if WORDS_MIN <= len(words) <= WORDS_MAX:
            yield words


def tagged(words: list[str]) -> list[str]:
    """A tag for each word: a dotted name before a bracket is a call, a name after def or class a
    definition."""
    tags = ["O"] * len(words)
    for place, word in enumerate(words):
        if word != "(" or not place or not is_name(words[place - 1]):
            continue
        first = place - 1
        while first >= 2 and words[first - 1] == "." and is_name(words[first - 2]):
            first -= 2
        kind = "definition" if first and words[first - 1] in {"def", "class"} else "call"
        tags[first:place] = [f"B-{kind}", *[f"I-{kind}"] * (place - first - 1)]
    return tags


def is_name(word: str) -> bool:
    """Whether a word can be called."""
    return word.isidentifier() and not keyword.iskeyword(word)


def main() -> None:
    """Write the records to the standard output."""
    library = Path(sysconfig.get_path("stdlib"))
    for package in PACKAGES:
        for file in sorted((library / package).rglob("*.py")):
            for words in lines(file):
                sys.stdout.write(json.dumps({"tokens": words, "tags": tagged(words)}) + "\n")


if __name__ == "__main__":
    main()
