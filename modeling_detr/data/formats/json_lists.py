"""Write long lists of JSON."""

import json
from collections.abc import Iterable, Mapping
from typing import TextIO


def write_list(file: TextIO, entries: Iterable[Mapping[str, object]]) -> None:
    """Write a list of objects one by one: all together take several times the memory of a dataset."""
    file.write("[")
    for number, entry in enumerate(entries):
        file.write((",\n" if number else "\n") + json.dumps(entry, ensure_ascii=False))
    file.write("]")
