"""Seeded mutations of valid files, as somebody hostile or a broken tool would write them."""

import json
import os
import random
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any


# Values in place of any other, as JSON text.
JSON_VALUES = [
    *(
        "null",
        "true",
        "false",
        "[]",
        "{}",
        "0",
        "-1",
        "1",
        "0.5",
        '""',
        '"x"',
        '"1"',
        '" "',
        "[[]]",
        "[null]",
        '{"a": 1}',
    ),
    *("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1e308", "-1e308", "1e-320", "2147483648", "1000000000"),
    *("9223372036854775807", "9223372036854775808", "-9223372036854775809", "18446744073709551616", "1" + "0" * 400),
    *(
        "7" * 5000,
        '"\\ud800"',
        '"\\udcff"',
        '"a\\u0000b"',
        '"../../../etc/passwd"',
        '"/etc/passwd"',
        '"' + "n" * 5000 + '"',
    ),
    *("[1, 2]", '["a", "b"]', "[1, 2, 3, 4, 5]", "[1e308, 1e308, 1e308, 1e308]", "[NaN, 0, 1, 1]", "[[1, 2], [3, 4]]"),
    *(
        '[{"id": []}]',
        '{"a": 1}',
        "[" * 2000 + "]" * 2000,
        '"2020-01-01"',
        '"1:30"',
        '"\\u202e\\u001b[31m"',
        '"."',
        '".."',
        '"/"',
        '"/etc/passwd"',
    ),
]
TEXT_VALUES = [
    *("", " ", "x", "-1", "0", "1e400", "-1e400", "nan", "inf", "-inf", "1e308", "9" * 400, "7" * 5000, "1_0", "0x10"),
    *(
        "\x00",
        "\ufffd",
        "\u202e",
        "٣",
        "½",
        "1,5",
        "1,5,5",
        "[1]",
        "../../../../etc/passwd",
        "/etc/passwd",
        "n" * 5000,
    ),
    *("9223372036854775808", "true", "null", ".", "..", "/", "/etc/passwd", "\u2028", "1:30"),
]
YAML_TEXTS = [
    "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9))
    + "names: *j\ntrain: images/train\n",
    "a: &a {k1: 1, k2: 2}\n"
    + "".join(f"{chr(98 + n)}: &{chr(98 + n)}\n  <<: [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9))
    + "names: *j\ntrain: images/train\n",
    "names: &a [*a]\ntrain: images/train\n",
    "names: &a {0: *a}\ntrain: images/train\n",
    "&a ? *a\n: 1\n",
    "names: [cat, dog]\ntrain: &a [*a, images/train]\n",
    "nc: 1000000000\ntrain: images/train\n",
    "nc: -5\ntrain: images/train\n",
    "nc: 1e9\nnames: [cat, dog]\ntrain: images/train\n",
    "names: !!python/object/apply:os.system ['true']\n",
    "names: !!python/name:os.system\n",
    "names: !!int abc\n",
    "names: !!float abc\n",
    "names: !!bool abc\n",
    "names: !!binary '%%%'\n",
    "names: !!timestamp abc\n",
    "names: !!set {a, b}\n",
    "names: !!omap [a: 1]\n",
    "names: !!pairs [a: 1]\n",
    "names: !!null [a]\n",
    "names: !!str {a: b}\n",
    "names: 2020-99-99\n",
    "names: [2020-01-01, 1:30, yes, ~, .nan, 0o7]\nnc: 6\ntrain: images/train\n",
    "? [a, b]\n: 1\nnames: [cat, dog]\n",
    "? {a: b}\n: 1\nnames: [cat, dog]\n",
    "names: {0: cat, 0: dog}\n",
    "names: {0: cat}\nnames: {0: dog}\n",
    "names: {[1]: cat}\n",
    "<<: 5\nnames: [cat, dog]\n",
    "<<: [5]\nnames: [cat, dog]\n",
    "--- a\n--- b\n",
    "%YAML 9.9\n---\nnames: [a]\n",
    "%TAG ! tag:yaml.org,2002:\n---\nnames: !python/none x\n",
    "names: *missing\n",
    "names: \x07\n",
    "[" * 100_000,
    "{a: " * 100_000,
    "- " * 100_000,
    "? " * 100_000,
    "names: " + "!" * 100_000,
    "names: '" + "x" * 500_000,
    "a: b: c\n",
    "\ttab\n",
]


def json_trees(content: Any, rng: random.Random, count: int) -> Iterator[str]:
    """Texts of `content`, each with one or two of its values replaced, removed or repeated."""
    for _ in range(count):
        tree = json.loads(json.dumps(content))
        inserted: list[str] = []
        for _ in range(rng.choice((1, 1, 2))):
            tree = _mutated(tree, rng, inserted)
        text = json.dumps(tree)
        for number, value in enumerate(inserted):
            text = text.replace(f'"@@{number}@@"', value)
        yield text


def _places(tree: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from _places(value, (*place, key))


def _mutated(tree: Any, rng: random.Random, inserted: list[str]) -> Any:
    place = rng.choice(list(_places(tree)))
    if not place:
        if rng.random() < 0.8:
            return _mutated(tree, rng, inserted) if tree else tree
        inserted.append(rng.choice(JSON_VALUES))
        return f"@@{len(inserted) - 1}@@"
    parent = tree
    for key in place[:-1]:
        parent = parent[key]
    kind = rng.random()
    if kind < 0.1:
        del parent[place[-1]]
    elif kind < 0.15 and isinstance(parent, list):
        parent.append(parent[place[-1]])
    elif kind < 0.2:
        parent[place[-1]] = [parent[place[-1]]]
    else:
        inserted.append(rng.choice(JSON_VALUES))
        parent[place[-1]] = f"@@{len(inserted) - 1}@@"
    return tree


def token_texts(text: str, rng: random.Random, count: int) -> Iterator[str]:
    """Texts of words, lines or XML, each with a word, a tag or the text between two tags replaced or removed."""
    tokens = re.split(r"(\s+|<[^>]*>)", text)
    words = [index for index, token in enumerate(tokens) if token.strip()]
    for _ in range(count):
        changed = list(tokens)
        for _ in range(rng.choice((1, 1, 2))):
            changed[rng.choice(words)] = rng.choice([*TEXT_VALUES, "", tokens[rng.choice(words)]])
        yield "".join(changed)


def byte_strings(content: bytes, rng: random.Random, count: int) -> Iterator[bytes]:
    """Bytes that are truncated, overwritten, repeated or have others inserted."""
    for _ in range(count):
        changed = bytearray(content)
        kind = rng.randrange(4)
        place = rng.randrange(len(content) + 1)
        if kind == 0:
            del changed[place:]
        elif kind == 1:
            for _ in range(rng.choice((1, 4, 16))):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
        elif kind == 2:
            changed[place:place] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 8, 64))))
        else:
            changed[place : place + 4] = rng.choice((b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff"))
        yield bytes(changed)


SPECIAL_FILES = ["folder", "pipe", "socket", "loop", "endless", "proc", "kernel", "dangling", "empty"]


def replace_by(path: Path, kind: str) -> None:
    """Put something that is no regular file in place of `path`."""
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        folder = Path.cwd()
        os.chdir(path.parent)  # the path of a socket has at most 108 characters
        with suppress(OSError), socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
        os.chdir(folder)
    elif kind == "empty":
        path.touch()
    else:
        targets = {"loop": path, "endless": "/dev/zero", "proc": "/proc/self/maps", "kernel": "/proc/kmsg"}
        path.symlink_to(targets.get(kind, "nowhere"))
