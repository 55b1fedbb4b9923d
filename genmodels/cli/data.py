"""The subcommands of `genmodels data`. Signatures and docstrings are the command line's; slow imports stay inside."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from genmodels.cli.arguments import check_free
from genmodels.usage import UsageError


def pack(
    data: Positional[Literal["celeba", "folder"]], root: Path, out: Path, size: int = 64, crop: str | None = None
) -> None:
    """Decode a data set once into a memory-mapped array with attributes and a manifest. Interrupted, it goes on.

    Args:
        data: celeba for the official layout, folder for any tree of images.
        root: where the images lie: the folder, or for folder also a .zip.
        out: the packed directory to write, for --data OUT of train and evaluate.
        size: side of the packed images in pixels.
        crop: celeba: 178 (default), 148, 140 or 128. folder: centre (default) or a number of pixels.
    """
    from genmodels import data as sets

    packed = sets.load_packed(sets.pack(data, root, out, size, crop))
    print(packed.describe())
    skipped = packed.manifest.get("skipped", [])
    for name, reason in skipped[:20]:
        print(f"skipped {name}: {reason}")
    if len(skipped) > 20:
        print(f"... and {len(skipped) - 20:,} more, listed in {out / 'manifest.json'}")


def show(data: Positional[str], out: Path = Path("sheet.png"), n: int = 32, seed: int = 0, force: bool = False) -> None:
    """Say what a packed directory (or toyfaces) holds, and write a sheet of some of its images with their attributes.

    Args:
        data: the packed directory, or toyfaces.
        out: the picture to write.
        n: how many images.
        seed: which images.
        force: overwrite an existing file.
    """
    if n < 1:
        raise UsageError(f"--n must be at least 1, got {n}")
    check_free(out, force, ".png", ".jpg", ".webp")

    from genmodels.data import open_data, save_sheet

    packed = open_data(data, size=None)
    print(packed.describe())
    print(f"sheet in {save_sheet(packed, out, n, seed)}")


def export(packed: Positional[Path], out: Path, kind: Literal["jpeg", "webp"] = "jpeg", quality: int = 92) -> None:
    """Write a packed directory as one small .zip that `--data folder --root OUT` reads, to carry it elsewhere.

    Args:
        packed: the packed directory.
        out: the .zip to write.
        kind: how the images are compressed.
        quality: of the compression, 1 to 100.
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
    """Obtain a data set. Where that fails, the error says how to place the files by hand.

    Args:
        data: which.
        root: the folder to put it in.
        via: torchvision's downloader, or a data set repository on the Hub.
        repo: that repository (user/name).
    """
    from genmodels.data import download_celeba

    print(f"{data} is there: --data {data} --root {download_celeba(via, root, repo)}")
