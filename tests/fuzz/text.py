"""Damage to any file, and to text: JSON, YAML and tables."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from typing import Any

import yaml

NUMBERS = (
    -1,
    0,
    1,
    2,
    1.5,
    8.0,
    -(2**63),
    2**63,
    2**31,
    10**40,
    1e308,
    -1e308,
    1e-308,
    True,
    float("nan"),
    float("inf"),
)
PATHS = (
    "../../x",
    "/dev/zero",
    "/etc/passwd",
    "/proc/self/mem",
    "..",
    ".",
    "a/b",
    "~",
    "/",
    "C:\\x",
    "canary/kept.txt",
)
TEXTS = (
    "",
    " ",
    "x",
    "[/]",
    "[bold]",
    "[link=a]b[/link]",
    "$\\frac{",
    "a\nb",
    "a\x00b",
    "\ud800",
    "é",
    "yes,no",
    "a" * 5000,
)
WORDS = (*PATHS, *TEXTS, "__class__", "cuda", "no", "none", "inf", "1e400", "user/name", "http://127.0.0.1:9/x")


def bytewise(rng: random.Random, data: bytes) -> bytes:
    """Damage bytes at random places: flipped, cut off, inserted, removed, doubled, zeroed."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 30))):
        if not out:
            return rng.randbytes(rng.randrange(64))
        at, count = rng.randrange(len(out)), rng.choice((1, 1, 2, 4, 16, 200))
        if rng.random() < 0.5:
            at = min(at, rng.randrange(64))  # headers matter more than what follows
        kind = rng.randrange(7)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.choice((0, 0xFF, 0x7F, 0x80, 0x0A, 0x0D, 0x22, 0x2C))
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            out[at:at] = rng.randbytes(count)
        elif kind == 4:
            del out[at : at + count]
        elif kind == 5:
            out[at:at] = out[at : at + count] * rng.choice((1, 3, 100))
        else:
            out[at : at + count] = bytes(len(out[at : at + count]))
    return bytes(out)


def value(rng: random.Random, depth: int = 2) -> Any:
    """Return a value that a file of settings should not hold at most places."""
    kind = rng.randrange(8 if depth else 3)
    if kind == 0:
        return rng.choice(NUMBERS)
    if kind == 1:
        return rng.choice(WORDS)
    if kind == 2:
        return rng.choice((None, [], {}, False, "", 0))
    if kind == 3:
        return [value(rng, depth - 1) for _ in range(rng.choice((1, 2, 3, 100)))]
    if kind == 4:
        return {rng.choice(WORDS): value(rng, depth - 1) for _ in range(rng.choice((1, 2)))}
    if kind == 5:
        return [value(rng, 0)] * rng.choice((2, 1000, 100_000))
    if kind == 6:
        deep: Any = 1
        for _ in range(rng.choice((3, 70, 400))):
            deep = [deep] if rng.random() < 0.5 else {"a": deep}
        return deep
    return str(rng.choice(NUMBERS))


def structural(rng: random.Random, tree: Any) -> Any:
    """Change one to three places of a tree of dicts and lists: values, names, types, order."""
    tree = json.loads(json.dumps(tree, default=str))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(tree))
        if not places:
            return value(rng)
        parent, key = rng.choice(places)
        held = parent[key]
        kind = rng.randrange(9)
        if kind < 3:
            parent[key] = value(rng)
        elif kind == 3:
            parent[key] = (
                {int: str, str: list, list: dict}.get(type(held), lambda _: None)(() if held is None else held)
                if not isinstance(held, (list, bool, type(None), float))
                else [held]
            )
        elif kind == 4:
            del parent[key]
        elif kind == 5 and isinstance(parent, dict):
            parent[rng.choice((*WORDS, str(key) + "s", str(key).upper()))] = parent.pop(key)
        elif kind == 6 and isinstance(held, (int, float)):
            parent[key] = rng.choice((-held, held * 2, held + 1, held + 0.5, held * 10**12, rng.choice(NUMBERS)))
        elif kind == 7 and isinstance(parent, list):
            parent[key:key] = [held] * rng.choice((1, 2, 5000))
        elif kind == 8 and isinstance(held, str):
            parent[key] = rng.choice((held + rng.choice(TEXTS), held[:-1], held.upper(), rng.choice(WORDS)))
        else:
            parent[key] = rng.choice(NUMBERS)
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every (parent, key) of a tree; of a long list, only the first of its entries."""
    keys = list(tree) if isinstance(tree, dict) else range(min(len(tree), 8)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _places(tree[key])


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def as_json(rng: random.Random, data: bytes) -> bytes:
    kind = rng.randrange(12)
    if kind == 0:
        return rng.choice(
            (b"", b"null", b"[]", b"{}", b"1", b'"x"', b"[" * 100_000, b'{"a":' * 20_000, b"NaN", b"\xff\xfe{\x00}\x00")
        )
    if kind == 1:  # a name twice
        text = data.decode()
        pair = re.search(r'"\w+": [^{\[,\n]+,', text)
        return encoded(text.replace(pair[0], pair[0] * 2, 1)) if pair else data + data
    if kind < 4:
        return bytewise(rng, data)
    return encoded(
        json.dumps(structural(rng, json.loads(data)), ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, 2)))
    )


def as_json_lines(rng: random.Random, data: bytes) -> bytes:
    lines = data.splitlines()
    at = rng.choice((0, -1, rng.randrange(len(lines))))
    kind = rng.randrange(6)
    if kind == 0:
        lines[at] = rng.choice((b"null", b"[]", b"1", b'"x"', b"", b"{}", b"\x00" * 50, b"[" * 50_000))
    elif kind == 1:
        lines[at:at] = [lines[at]] * rng.choice((1, 3))
    elif kind == 2:
        rng.shuffle(lines)
    elif kind == 3:
        return bytewise(rng, data)
    else:
        lines[at] = as_json(rng, lines[at])
    return b"\n".join(lines) + rng.choice((b"\n", b"", b"\r\n"))


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


def as_yaml(rng: random.Random, data: bytes) -> bytes:
    kind = rng.randrange(12)
    if kind == 0:
        special = (
            BOMB,
            "a: *a",
            "- 1",
            "x",
            "",
            "!!python/object/apply:os.system [touch x]",
            "[" * 5000,
            "? [a]: b\n: c",
            "a: 2026-13-45",
        )
        return rng.choice(special).encode()
    if kind == 1:
        return data + rng.choice(
            (BOMB.encode(), data, b"steps: &x 1\nsize: *x\n", b"<<: {size: 8}\n", b"? {a: b}\n: c\n", b"\t- x")
        )
    if kind < 4:
        return bytewise(rng, data)
    tree = structural(rng, yaml.safe_load(data))
    try:
        return encoded(yaml.safe_dump(tree))
    except (yaml.YAMLError, RecursionError):
        return encoded(json.dumps(tree))


def as_text(rng: random.Random, data: bytes) -> bytes:
    """Damage a table: csv, or columns separated by spaces."""
    kind = rng.randrange(12)
    lines = data.splitlines()
    at = rng.randrange(len(lines))
    comma = b"," if b"," in data else b" "
    if kind == 0:
        return data.decode("utf-8", "replace").encode(rng.choice(("utf-16", "utf-16-le", "utf-8-sig", "utf-32")))
    if kind == 1:
        return rng.choice((b"\r", b"\r\n", b"\n\n", b"\x00", b"\x0b", "\u2028".encode())).join(lines)
    if kind == 2:
        return bytewise(rng, data)
    cells = lines[at].split(comma)
    cell = rng.randrange(len(cells))
    words = (
        b'"',
        b"",
        b"x" * 140_000,
        b"[/]",
        b"0",
        b"1",
        b"-1",
        b"2",
        b"1.0",
        b"nan",
        b"yes",
        b"\xff\xfe",
        b"a\x00",
        b"9" * 30,
        b"../x.png",
        b"/x.png",
        b"\xc3",
        b"=1+1",
        b"'",
    )
    if kind in (3, 4, 5):
        cells[cell] = rng.choice(words)
    elif kind == 6:
        cells[cell:cell] = [rng.choice(words)] * rng.choice((1, 2, 500))
    elif kind == 7:
        del cells[cell]
    elif kind == 8:
        lines[at:at] = [lines[at]] * rng.choice((1, 2, 300))
        return b"\n".join(lines)
    elif kind == 9:
        del lines[at:]
        return b"\n".join(lines)
    elif kind == 10:
        cells[cell] = cells[cell].swapcase() + rng.choice((b"", b" ", b".JPG", "\u00e9".encode()))
    else:
        rng.shuffle(lines)
        return b"\n".join(lines)
    lines[at] = comma.join(cells)
    return b"\n".join(lines) + rng.choice((b"\n", b""))
