"""The subcommands of `genmodels data`.

Signatures and docstrings are what `--help` prints. Slow imports are inside the functions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from genmodels.cli.arguments import check_free
from genmodels.usage import UsageError

DataSet = Literal[
    "celeba", "folder", "mnist", "fashion-mnist", "cifar10", "cifar100", "huggingface", "webdataset", "toyfaces"
]


def pack(
    data: Positional[DataSet],
    out: Path,
    root: Path | None = None,
    size: int | Literal["native"] | None = None,
    crop: str | None = None,
    store: Literal["raw", "jpeg", "webp"] = "raw",
    quality: int = 95,
    part: str | None = None,
    workers: int | None = None,
    allow_unmatched: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    text_column: str | None = None,
    count: int | None = None,
) -> None:
    """Decode a data set once into a memory-mapped array with its labels and a manifest.

    The same command resumes an interrupted pack.

    Args:
        data: celeba for CelebA in its official layout, folder for any tree of images, mnist ...
            cifar100 for the files of torchvision, huggingface for parquet and arrow files,
            webdataset for tar shards, toyfaces for procedural faces.
        root: folder that holds the files. mnist ... cifar100 are downloaded to it. It may also be a
            .zip for folder, a file or a Hub id for huggingface, and a .tar or a pattern such as
            shards-{0000..0015}.tar for webdataset.
        out: packed directory to write. train and evaluate read it with --data OUT.
        size: side of the packed images in pixels; native keeps that of the images. By default 28 or
            32 for mnist ... cifar100, and 64 for others.
        crop: celeba: 178 (default), 148, 140 or 128. Others: centre (default), a number of pixels,
            or pad for a black border.
        store: raw stores pixels. jpeg and webp store the cropped images encoded, in less space;
            training decodes them.
        quality: quality of encoded images, 1 to 100.
        part: pack only a part of the images, such as 2/8 for the second of eight, each of which
            another machine may pack. data join puts them together.
        workers: number of processes that decode. By default, one process with a thread per core.
        allow_unmatched: pack even if most rows of the labels belong to no image.
        image_column: huggingface: column of the images. By default, the only one of type Image.
        label_column: huggingface: column of the labels. By default, label, if there is one.
        text_column: huggingface: column of the captions. By default, none is read.
        count: toyfaces: number of training images; there are also 2,048 for validation. By default
            16,384.
    """
    from genmodels import data as sets

    if data == "toyfaces":
        _draw(out, root, size, crop, store, count)
        return
    if count is not None:
        raise UsageError(f"--count {count}: the number of images of {data} is that of its files")
    from genmodels.data.huggingface import Columns
    from genmodels.data.parts import parse_part

    columns, chosen = Columns(image_column, label_column, text_column), None if part is None else parse_part(part)
    out = sets.pack(data, root, out, size, crop, workers, allow_unmatched, columns, store, quality, chosen)
    packed = sets.load_packed(out)
    print(packed.describe())
    skipped = packed.manifest.get("skipped", [])
    for name, reason in skipped[:20]:
        print(f"skipped {name}: {reason}")
    if len(skipped) > 20:
        print(f"... and {len(skipped) - 20:,} more, listed in {out / 'manifest.json'}")


def _draw(out: Path, root: Path | None, size: object, crop: str | None, store: str, count: int | None) -> None:
    """Pack procedural faces."""
    from genmodels import data as sets
    from genmodels.writing import is_free

    if root is not None or crop is not None or store != "raw" or size == "native":
        raise UsageError("toyfaces are drawn, not read from files: leave out --root, --crop, --store and --size native")
    if not is_free(out):
        raise ValueError(f"{out} is not an empty folder: choose another --out")
    train = sets.TOYFACES[0] if count is None else count
    sets.draw_toyfaces(out, sets.SIZE if size is None else int(str(size)), train)
    print(sets.load_packed(out).describe())


def join(out: Positional[Path], parts: Positional[tuple[Path, ...]]) -> None:
    """Join the parts of a data set that data pack --part wrote, on one or several machines.

    The result is the same as that of packing all at once. The parts are checked and stay as they
    are.

    Args:
        out: packed directory to write.
        parts: packed directories of all parts, in any order.
    """
    from genmodels import data as sets

    print(sets.load_packed(sets.join(out, parts)).describe())


def show(
    data: Positional[str],
    out: Path = Path("sheet.png"),
    n: int = 32,
    seed: int = 0,
    captions: bool = False,
    force: bool = False,
) -> None:
    """Describe a packed directory (or toyfaces), and show some images with classes and attributes.

    Args:
        data: packed directory, or toyfaces.
        out: picture to write.
        n: number of images.
        seed: seed of the selection of images, and of captions.
        captions: show a caption of each image: a stored one, or one written from its attributes.
        force: overwrite an existing file.
    """
    if n < 1:
        raise UsageError(f"--n must be at least 1, got {n}")
    check_free(out, force, ".png", ".jpg", ".webp")

    from genmodels.data import open_data, save_sheet
    from genmodels.data.classes import count_classes

    packed = open_data(data, size=None)
    print(packed.describe())
    if packed.labels is not None:
        print(count_classes(packed.labels, packed.class_names))
    for note in packed.manifest.get("notes", []):
        print(note)
    print(f"sheet in {save_sheet(packed, out, n, seed, captions)}")


def export(packed: Positional[Path], out: Path, kind: Literal["jpeg", "webp"] = "jpeg", quality: int = 92) -> None:
    """Write a packed directory as one small .zip, for another machine.

    --data folder --root OUT reads it.

    Args:
        packed: packed directory.
        out: .zip to write.
        kind: format of the images in it.
        quality: quality of the compression, 1 to 100.
    """
    from genmodels import data as sets

    sets.export(sets.load_packed(packed), out, kind, quality)
    print(f"{out.stat().st_size / 1e6:.1f} MB in {out}")


def download(
    data: Positional[Literal["celeba"]],
    root: Path,
    via: Literal["torchvision", "hub"] = "torchvision",
    repo: str | None = None,
) -> None:
    """Download a data set. If that fails, the error says how to place the files by hand.

    Args:
        data: data set.
        root: folder to write it to.
        via: torchvision's downloader, or a data set repository on the Hugging Face Hub.
        repo: that repository (user/name).
    """
    from genmodels.data import download_celeba

    print(f"{data} is there: --data {data} --root {download_celeba(via, root, repo)}")
