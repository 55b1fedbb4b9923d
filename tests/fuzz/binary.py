"""Damage to binary files: arrays, archives, weights and pictures. `MUTATIONS` lists all damage."""

from __future__ import annotations

import io
import json
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from fuzz.text import WORDS, as_json, as_json_lines, as_text, as_yaml, bytewise, encoded, structural
from PIL import Image

Mutation = Callable[[random.Random, bytes], bytes]

SHAPES = ((2**62,), (2**31, 2**31), (0,), (-1,), (1, 1), (256, 10**6, 10**6, 3), (), (2**40, 16, 16, 3), (1,) * 70)
DTYPES = ("<f8", ">f4", "<f2", "|O", "|S9", "<U9", "|b1", "<c16", "<M8[s]", "|V7", "<i8", "|u1", "x", "[('a','<f4')]")


def as_npy(rng: random.Random, data: bytes) -> bytes:
    if rng.random() < 0.3 or not data.startswith(b"\x93NUMPY"):
        return bytewise(rng, data)
    size = struct.unpack("<H", data[8:10])[0]
    header, body = data[10 : 10 + size], data[10 + size :]
    shape, kind = rng.choice(SHAPES), rng.choice(DTYPES)
    changes = (
        (rb"\([^)]*\)", str(shape)),
        (rb"'descr': '[^']*'", f"'descr': {kind if kind[0] == '[' else repr(kind)}"),
        (rb"False", "True"),
        (rb"'shape'", "'shap'"),
        (rb"\{", "{" * 500),
        (rb"\(", "(" * 9000),
        (rb"\}", ", 'x': 1}"),
        (rb"\([^)]*\)", "__import__('os')"),
    )
    pattern, new = rng.choice((changes[0], changes[1], rng.choice(changes)))
    header = re.sub(pattern, lambda _: new.encode(), header, count=1)
    if rng.random() < 0.2:
        body = body[: rng.randrange(len(body) + 1)]
    if b"<f" in header[:40] and rng.random() < 0.5:
        body = np.full(len(body) // 4, np.nan, "<f4").tobytes()
    version = rng.choice((b"\x01\x00", b"\x01\x00", b"\x01\x00", b"\x02\x00", b"\x09\x00"))
    length = struct.pack("<H", len(header) & 0xFFFF) if version[0] == 1 else struct.pack("<I", len(header))
    return b"\x93NUMPY" + version + length + header + body


def as_zip(rng: random.Random, data: bytes) -> bytes:
    """Damage an archive: its bytes, its names, its members."""
    kind = rng.randrange(10)
    if kind < 2:
        return bytewise(rng, data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = rng.randrange(len(members))
    name, content = members[at]
    out = io.BytesIO()
    with zipfile.ZipFile(
        out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    ) as archive:
        if kind == 2:
            prefix = rng.choice(
                ("../", "/", "./", "a\\", "../../../", "C:\\", "a//", "[/]", "x/y/", "\u00e9/", "e\u0301/")
            )
            members = [(prefix + each, held) for each, held in members]
        elif kind == 3:
            members[at] = (rng.choice((*WORDS, name.upper(), name + "/", "../" + name))[:200] or "x", content)
        elif kind == 4:
            mutation = MUTATIONS.get(Path(name).suffix, bytewise)
            members[at] = (name, mutation(rng, content))
        elif kind == 5:
            members += [members[at]] * rng.choice((1, 2))
        elif kind == 6:
            members[at] = (name, b"\x00" * (1 << 25))  # a bomb: 32 MB in 32 KB
        elif kind == 7:
            members = members[:at]
        for each, held in members:
            possible = each.encode(errors="replace").decode()  # zipfile refuses a lone surrogate
            archive.writestr(zipfile.ZipInfo(possible), held, compress_type=archive.compression)
    written = bytearray(out.getvalue())
    if kind in (8, 9):  # encrypted, another method, endless sizes, or dates that do not exist
        for start in _all(written, rng.choice((b"PK\x01\x02", b"PK\x03\x04"))):
            field = start + (8 if written[start + 2] == 1 else 6)
            offset, new = rng.choice(
                (
                    (0, b"\x01\x00"),
                    (2, b"\x63\x00"),
                    (16, b"\xff\xff\xff\x7f"),
                    (4, b"\xff\xff\xff\xff"),
                    (8, b"\x00" * 4),
                )
            )
            written[field + offset : field + offset + len(new)] = new
    return bytes(written)


def as_tar(rng: random.Random, data: bytes) -> bytes:
    """Damage a tar archive: its bytes, or a field of the header of a member, with a correct checksum."""
    if rng.random() < 0.3:
        return bytewise(rng, data)
    starts = [at - 257 for at in _all(data, b"ustar") if (at - 257) % 512 == 0]
    at, written = rng.choice(starts), bytearray(data)
    start, size, new = rng.choice(
        (
            (0, 100, rng.choice(("../../x.png", "/x.png", "x/0.png", "x/0.jpg", "", "x/9.cls", "a" * 100)).encode()),
            (0, 100, rng.randbytes(100)),
            (124, 12, rng.choice((b"77777777777", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"-1", b"x", b"00000000001"))),
            (156, 1, rng.choice((b"0", b"1", b"2", b"3", b"5", b"6", b"S", b"L", b"K", b"x", b"g", b"V", b"M"))),
            (345, 155, rng.choice((b"..", b"/" * 155, b".hidden"))),
        )
    )
    written[at + start : at + start + size] = new[:size].ljust(size, b"\0")
    written[at + 148 : at + 156] = b" " * 8
    written[at + 148 : at + 156] = b"%06o\0 " % sum(written[at : at + 512])
    return bytes(written)


def _all(data: bytes, pattern: bytes) -> Iterator[int]:
    at = data.find(pattern)
    while at >= 0:
        yield at
        at = data.find(pattern, at + 1)


def as_safetensors(rng: random.Random, data: bytes) -> bytes:
    """Damage weights: the header, names, types and shapes of tensors, or numbers that are not finite."""
    kind = rng.randrange(8)
    size = struct.unpack("<Q", data[:8])[0]
    if kind < 2 or size > len(data):
        return bytewise(rng, data)
    header, body = json.loads(data[8 : 8 + size]), bytearray(data[8 + size :])
    if kind in (2, 3):
        numbers = rng.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f", b"\x00\x00\x80\xff"))
        name = rng.choice(sorted(set(header) - {"__metadata__"}))
        start, end = header[name]["data_offsets"]
        body[start:end] = (numbers * (end - start))[: end - start]
    elif kind == 4:
        name = rng.choice(sorted(set(header) - {"__metadata__"}))
        header[name]["dtype"] = rng.choice(("I32", "U32", "BF16", "F64", "F16", "F8_E4M3", "I64", "BOOL", "X"))
    elif kind == 5:
        first, second = rng.choice(sorted(header)), rng.choice(sorted(header))
        header[first], header[second] = header[second], header[first]
    else:
        header = structural(rng, header)
    text = encoded(json.dumps(header, ensure_ascii=False))
    return (
        struct.pack("<Q", rng.choice((len(text), len(text), len(text), len(text), 2**63, 0, len(text) + 8)))
        + text
        + bytes(body)
    )


def exif(rng: random.Random) -> bytes:
    """Return EXIF data in which tags have wrong types, counts and places."""
    tags = (
        0x0100,
        0x0102,
        0x0103,
        0x0106,
        0x010E,
        0x0112,
        0x0112,
        0x011A,
        0x0132,
        0x014A,
        0x8769,
        0x8825,
        0x9003,
        0x927C,
        0xA005,
    )
    order = rng.choice("<>")
    count = rng.randrange(1, 6)
    entries = b"".join(
        struct.pack(
            f"{order}HHI",
            rng.choice(tags),
            rng.choice((0, *range(1, 14), 99)),
            rng.choice((0, 1, 1, 2, 3, 2**16, 2**32 - 1)),
        )
        + rng.choice(
            (
                struct.pack(f"{order}I", rng.randrange(200)),
                struct.pack(f"{order}HH", rng.randrange(10), 0),
                rng.randbytes(4),
            )
        )
        for _ in range(count)
    )
    head = (b"II*\x00" if order == "<" else b"MM\x00*") + struct.pack(f"{order}I", 8)
    return (
        b"Exif\x00\x00"
        + head
        + struct.pack(f"{order}H", count)
        + entries
        + struct.pack(f"{order}I", rng.choice((0, 8, 2**31)))
        + rng.randbytes(rng.randrange(80))
    )


def as_picture(rng: random.Random, data: bytes) -> bytes:
    """Damage a picture: its bytes, its EXIF data, its size, its mode, or its format."""
    kind = rng.randrange(8)
    if kind < 3:
        return bytewise(rng, data)
    if kind < 6:
        with Image.open(io.BytesIO(data)) as opened:
            picture = opened.convert("RGB")
        out = io.BytesIO()
        picture.save(out, rng.choice(("JPEG", "PNG", "WEBP")), exif=exif(rng))
        return out.getvalue()
    if kind == 6 and data.startswith(b"\x89PNG"):  # another size or mode in the header, with its checksum
        side = rng.choice((0, 1, 2, 20_000, 2**31 - 1, 2**20))
        header = struct.pack(">II", side, rng.choice((side, 16))) + bytes(
            (rng.choice((1, 8, 8, 16, 3)), rng.choice((0, 2, 3, 4, 6, 1)), 0, 0, rng.choice((0, 1)))
        )
        chunk = b"IHDR" + header
        return data[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]
    special = (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\nshowpage\n",
        b"",
        b"GIF89a" + bytes(9),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"P6 20000 20000 255\n",
        b"BM" + bytes(60),
        b"RIFF\x00\x00\x00\x00WEBPVP8 ",
        b"\x00\x00\x01\x00\x01\x00",
        b"II*\x00\xff\xff\xff\xff",
        b"8BPS\x00\x01",
    )
    return rng.choice(special)


MUTATIONS: dict[str, Mutation] = {
    ".json": as_json, ".jsonl": as_json_lines, ".yaml": as_yaml, ".csv": as_text, ".txt": as_text,
    ".npy": as_npy, ".npz": as_zip, ".zip": as_zip, ".tar": as_tar, ".safetensors": as_safetensors,
    ".png": as_picture, ".jpg": as_picture, ".webp": as_picture,
    ".tif": as_picture, ".gif": as_picture, ".bmp": as_picture,
}  # fmt: skip
"""Mutations by the ending of the file's name."""
