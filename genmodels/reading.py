"""Reading text, JSON and YAML with limits. Everything that reads such files uses these functions."""

from __future__ import annotations

import json
import math
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

LARGEST_TEXT = 1 << 26
"""Largest text file that is read, in bytes."""
LARGEST_LINE = 1 << 20
"""Largest line of a file of JSON lines that is read, in bytes."""
LARGEST_YAML = 1 << 17
"""Largest YAML file that is read, in bytes. Parsing it takes a second."""
DEEPEST = 64
"""Largest depth of nested lists and groups in YAML."""


def read_bytes(path: Path, limit: int = LARGEST_TEXT) -> bytes:
    """Read a small file.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is not a regular file (a device or a pipe never ends), or is larger than
            `limit` bytes.
    """
    size = check_regular(path)
    if size > limit:
        raise ValueError(f"{path} has {size:,} bytes; at most {limit:,} are read")
    with path.open("rb") as file:
        return file.read(limit)


def check_regular(path: Path) -> int:
    """Check that a file is a regular one, since a device or a pipe may never end; return its size.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is not a regular file.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is not a regular file")
    return status.st_size


def read_text(path: Path, limit: int = LARGEST_TEXT) -> str:
    """Read a file that genmodels or a library wrote, as UTF-8.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: see `read_bytes`; or if it is not UTF-8.
    """
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start:,})") from None


def read_json(path: Path, limit: int = LARGEST_TEXT) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is not JSON, or holds a number that is not finite or a name twice.
    """
    text = read_text(path, limit)
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); the file is damaged") from None


def parse_json(text: str) -> Any:
    """Parse JSON text.

    Raises:
        ValueError: if it is not JSON, is nested too deeply, or holds a number that is not finite or
            a name twice in one group. The message does not name the file.
    """
    try:
        return json.loads(text, parse_float=_finite, parse_constant=_not_finite, object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json_lines(path: Path, report: Callable[[str], object] | None = None) -> Iterator[dict[str, Any]]:
    """Read a file of JSON lines, such as metrics.jsonl, one line at a time; nothing if it does not
    exist. The file may have any size.

    Lines that are not a JSON object in UTF-8 are left out. A process that is killed leaves its last
    line incomplete; any other such line is damage.

    Args:
        path: the file.
        report: called with a message for each line that is damaged.

    Raises:
        ValueError: if it is not a regular file, or a line has more than `LARGEST_LINE` bytes.
    """
    try:
        check_regular(path)
    except FileNotFoundError:
        return
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LARGEST_LINE + 1), b""), start=1):
            if len(line) > LARGEST_LINE:
                raise ValueError(f"{path} has a line of more than {LARGEST_LINE:,} bytes; the file is damaged")
            value = None
            with suppress(ValueError):
                value = parse_json(line.decode("utf-8-sig"))
            if isinstance(value, dict):
                yield value
            elif report is not None and line.endswith(b"\n"):
                report(f"{path}, line {number} is damaged (not a JSON object) and is left out")


def read_yaml(path: Path) -> Any:
    """Read a YAML file of plain values.

    Aliases are refused, because a few lines of them expand to endless data.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is not YAML, uses aliases, is nested too deeply, or has a name twice in
            one group.
    """
    import yaml

    text = read_text(path, LARGEST_YAML)
    try:
        _check_events(yaml.parse(text, yaml.SafeLoader))
        return yaml.load(text, _unique_loader())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not YAML that can be read ({in_one_line(error)})") from None


def in_one_line(text: object, limit: int = 400) -> str:
    """Join the lines of a message. Spaces within a line are kept: they may be those of a path.

    A message quotes what it read, which may be anything: the middle of one of more than `limit`
    characters is left out, and characters that control a terminal are escaped.
    """
    line = " ".join(line.strip() for line in str(text).splitlines() if line.strip())
    if len(line) > limit:
        line = f"{line[: limit // 2]} ... {line[-limit // 4 :]}"
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: found[0].encode("unicode_escape").decode(), line)


def _check_events(events: Any) -> None:
    """Check the depth of YAML, and that it uses no aliases, before anything is built."""
    import yaml

    depth = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"line {event.start_mark.line + 1}: aliases (*{event.anchor}) are not supported")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} levels deep")


def _unique_loader() -> Any:
    """Return a safe YAML loader that refuses a name that occurs twice in one group."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = [self.construct_object(key, deep=True) for key, _ in node.value]
            made = super().construct_mapping(node, deep)
            name, count = max(Counter(names).items(), key=lambda item: item[1], default=("", 0))
            if count > 1:
                raise ValueError(f"line {node.start_mark.line + 1}: {name!r} occurs twice in one group")
            return made

    # YAML 1.1 reads 1e-4, without a point, as text.
    number = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    return Loader


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _not_finite(text)


def _not_finite(text: str) -> NoReturn:
    raise ValueError(f"{text[:40]} is not a finite number")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{name[:40]!r} occurs twice in one group")
    return values
