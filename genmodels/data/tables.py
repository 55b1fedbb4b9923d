"""Tables of labels: text in any common encoding, and the image that each row belongs to."""

from __future__ import annotations

import codecs
import csv
import io
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from genmodels.data.source import name_parts, readable

EMPTY = 2
"""Value of an empty cell of an attribute, until `decide_zeros`."""
VALUES = {"-1": -1, "0": 0, "1": 1, "+1": 1, "": EMPTY, "-1.0": -1, "0.0": 0, "1.0": 1}
"""Cells of an attribute: no, unknown (or no, see `decide_zeros`), yes, unknown."""
SPLIT_FOLDERS = {"train": 0, "val": 1, "valid": 1, "validation": 1, "test": 2}
"""Names of folders that are splits, and the codes of the splits."""
ALLOW = "correct the names, or pack the images all the same: genmodels data pack --allow-unmatched"
"""What to do if labels and images do not match."""
FOLDERS = 16
"""Largest number of folders in front of every row that may be missing in the names of the files."""
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        line: number of its line in the file.
        file: the image, as it is written there.
        cells: the other columns.
    """

    line: int
    file: str
    cells: list[str]


def decode_text(data: bytes, where: str, notes: list[str]) -> str:
    """Decode a text file of UTF-8, of UTF-16 with a byte-order mark, or of Latin-1.

    Line ends become "\\n".

    Args:
        data: content of the file.
        where: its path, for messages.
        notes: receives a line if the file is not Unicode.

    Raises:
        ValueError: if it is not text.
    """
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-16":
            raise ValueError(f"{where} is damaged UTF-16 (byte {error.start:,}): save it as UTF-8") from None
        text = readable(data.decode("utf-8", "surrogateescape"))
        notes.append("its bytes that are not UTF-8 were read as Latin-1; save it as UTF-8 if they look wrong")
    if "\0" in text:
        raise ValueError(f"{where} is not text, or in an encoding without a byte-order mark: save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_table(data: bytes, where: str, notes: list[str]) -> tuple[list[str], list[Row]]:
    """Read a CSV file with a header, whose first column is an image file.

    Empty lines are left out, and so are columns without a name and without values, which a comma at
    the end of each line makes.

    Args:
        data: content of the file.
        where: its path, for messages.
        notes: receives a line for each peculiarity.

    Returns:
        Names of the columns after the first, and the rows.

    Raises:
        ValueError: if it is not such a table; names the line.
    """
    lines = _lines_of_csv(decode_text(data, where, notes), where)
    _, header = next(lines, (1, [""]))
    columns = [name.strip() for name in header[1:]]
    if not any(columns):
        raise ValueError(f"{where}: expected a header line with names separated by commas, the first one for the file")
    rows = []
    for number, cells in lines:
        while len(cells) > len(header) and not cells[-1].strip():
            cells.pop()
        if len(cells) != len(header):
            raise ValueError(f"{where}, line {number}: {len(cells)} columns, the header has {len(header)}")
        if not cells[0].strip():
            raise ValueError(f"{where}, line {number}: the name of the file is missing")
        rows.append(Row(number, cells[0], cells[1:]))
    for k in reversed([k for k, name in enumerate(columns) if not name]):
        if line := next((row.line for row in rows if row.cells[k].strip()), None):
            raise ValueError(f"{where}, line {line}: column {k + 2} has a value and no name in the header")
        notes.append(f"column {k + 2} is empty and has no name; it is ignored (a comma too many?)")
        for cells in (columns, *(row.cells for row in rows)):
            del cells[k]
    if len(set(columns)) != len(columns):
        raise ValueError(f"{where}: a column name occurs twice in the header")
    return columns, rows


def _lines_of_csv(text: str, where: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the lines of a CSV file that are not empty, with the numbers of their lines."""
    reader, number = csv.reader(io.StringIO(text), strict=True), 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield number, cells
            number = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{where}, line {number}: {error}: close the field with a quote, write a quote inside it twice, "
            "and shorten a field that is too long"
        ) from None


def decide_zeros(values: np.ndarray, names: Sequence[str], notes: list[str]) -> np.ndarray:
    """Return attributes in {-1, 0, 1}: no, unknown, yes.

    A column that has 0 and 1 and no -1 is a column of no and yes. So is one of only 0 in a table of
    such columns without any -1. An empty cell is always unknown.

    Args:
        values: int8 (N, K) in {-1, 0, 1, EMPTY}.
        names: names of the columns.
        notes: receives a line if 0 means no.
    """
    no, zero, yes = ((values == value).any(0) for value in (-1, 0, 1))  # (K,)
    binary = zero & yes & ~no
    if binary.any() and not no.any():
        binary |= zero
    if binary.any():
        which = some([names[k] for k in range(len(names)) if binary[k]])
        notes.append(f"0 is read as no, because there is no -1, in {which}; leave a cell empty if it is unknown")
    values = np.where((values == 0) & binary, -1, values)
    return np.where(values == EMPTY, 0, values).astype(np.int8)


def check_once(rows: Sequence[Row], owners: Sequence[object], where: str) -> None:
    """Check that no two rows belong to the same image.

    Args:
        rows: rows of a table.
        owners: the image of each row, or None.
        where: path of the table, for messages.

    Raises:
        ValueError: if two do; names both lines.
    """
    first: dict[object, int] = {}
    for row, owner in zip(rows, owners, strict=True):
        if owner is not None and (line := first.setdefault(owner, row.line)) != row.line:
            raise ValueError(f"{where}, line {row.line}: {row.file.strip()} was listed in line {line} already")


def match(rows: Sequence[Row], names: Sequence[str], base: str, where: str) -> list[int | None]:
    """Return the index of the image that each row belongs to, or None.

    A row names its image by the path from the root of the images, from the folder of the table or
    from the only folder in the root, or by the bare name of the file if only one file has it.
    Slashes, composed characters and a folder that is in front of every row make no difference.

    Args:
        rows: rows of a table.
        names: relative paths of all images.
        base: folder of the table, "" or with a slash at the end.
        where: path of the table, for messages.

    Raises:
        ValueError: if a bare name is that of several files.
    """
    exact = {name: i for i, name in enumerate(names)}
    folded = list(enumerate(map(fold, names)))
    starts = dict.fromkeys(("", fold(base), fold(only_folder(names))))
    indices = [_index((key.removeprefix(start), i) for i, key in folded if key.startswith(start)) for start in starts]
    bare = _index((key.rpartition("/")[2], i) for i, key in folded)
    keys = ["/".join(part for part in name_parts(fold(row.file.strip())) if part != "..") for row in rows]
    chain = common_folder(keys).count("/")

    def owners(row: Row, key: str, dropped: int) -> list[int]:
        if not dropped and row.file in exact:
            return [exact[row.file]]
        path = key.split("/", dropped)[-1]
        return next((index[path] for index in (*indices, *(() if "/" in key else (bare,))) if path in index), [])

    best: list[list[int]] = []
    most = -1
    for dropped in range(min(chain, FOLDERS) + 1):
        found = [owners(row, key, dropped) for row, key in zip(rows, keys, strict=True)]
        count = sum(len(each) == 1 for each in found)
        if count > most:
            best, most = found, count
        if count == len(rows):
            break
    for row, each in zip(rows, best, strict=True):
        if len(each) > 1:
            message = f"{row.file} is the name of {len(each)} files: give the relative path"
            raise ValueError(f"{where}, line {row.line}: {message}")
    return [each[0] if each else None for each in best]


def _index(pairs: Iterator[tuple[str, int]]) -> dict[str, list[int]]:
    index: dict[str, list[int]] = {}
    for key, i in pairs:
        index.setdefault(key, []).append(i)
    return index


def fold(name: str) -> str:
    """Return the form in which names of the same file are equal: composed characters, Latin-1 for
    bytes that are not UTF-8."""
    return name if name.isascii() else unicodedata.normalize("NFC", readable(name))


def common_folder(paths: Iterable[str]) -> str:
    """Return the folder that all paths are in, such as "faces/", or "" if there is none.

    It ends above the first folder whose name is a split.
    """
    folders = [path[: path.rfind("/") + 1] for path in paths]
    ends = zip(min(folders, default=""), max(folders, default=""), strict=False)
    common = "".join(letter for letter, _ in takewhile(lambda pair: pair[0] == pair[1], ends))
    parts = common[: common.rfind("/") + 1].split("/")[:-1]
    return "".join(f"{part}/" for part in takewhile(lambda part: not _is_split(part), parts))


def only_folder(names: Iterable[str]) -> str:
    """Return the folder that holds every file that is in a folder, such as "faces/", or ""."""
    return common_folder(name for name in names if "/" in name)


def _is_split(folder: str) -> bool:
    return folder.casefold() in SPLIT_FOLDERS


def compare_names(rows: Sequence[str], files: Sequence[str], total: tuple[int, int]) -> str:
    """Return a sentence on the rows without a file and the files without a row, and a likely cause.

    Args:
        rows: names in rows that have no file.
        files: names of the files that have no row.
        total: numbers of rows and of files.
    """
    parts = [
        f"{len(names):,} of {count:,} {kind} (such as {some(names, 2)})"
        for names, count, kind in (
            (rows, total[0], "rows have no file"),
            (files, total[1], "files have no row"),
        )
        if names
    ]
    return f"{' and '.join(parts)}{_cause(rows, files)}"


def _cause(rows: Sequence[str], files: Sequence[str]) -> str:
    """Return the likely cause of names that do not match: what they have to ignore to do so."""
    causes: dict[str, Callable[[str], str]] = {
        "upper and lower case": str.casefold,
        "their extensions": lambda name: re.sub(r"\.\w+$", "", name),
        "leading zeros": lambda name: re.sub(r"0+(?=\d)", "", name),
        "their folders": lambda name: name.rpartition("/")[2],
    }
    causes["several of case, extension, zeros and folder"] = lambda name: causes["their folders"](
        causes["leading zeros"](causes["their extensions"](name.casefold()))
    )
    for cause, ignore in causes.items():
        known = {ignore(fold(name)) for name in files}
        if 2 * sum(ignore("/".join(name_parts(fold(name)))) in known for name in rows) > len(rows):
            return f"; most differ only in {cause}"
    return ""


def some(names: Collection[str], count: int = 3) -> str:
    """Return the first names of a list, and how many more there are."""
    first = ", ".join(readable(name.strip())[:60] for name in list(names)[:count])
    return f"{first} and {len(names) - count:,} more" if len(names) > count else first
