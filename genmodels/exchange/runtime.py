"""Files of onnxruntime-web, which runs ONNX files in a browser: one version, with checksums."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from genmodels.data import cache_folder
from genmodels.reading import in_one_line
from genmodels.writing import replacing_folder, write_parts

VERSION = "1.30.0"
SHA256 = {
    "ort.wasm.min.js": "faece07e84faa9001f5104bbe4e5c70861d06cb2376a0dea1fa0ad33a67adc81",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
"""The files of dist/ that a page needs, for computation on the CPU."""
LARGEST = 2**26
"""Largest size of a file in bytes."""
SECONDS = 300
"""Time that npm has for the download of 33 MB."""


def runtime_files(path: Path | None = None) -> dict[str, bytes]:
    """Return the files of onnxruntime-web by name.

    They are those of `path`, or of the cache, or are downloaded by npm into the cache.

    Args:
        path: folder that has them, such as node_modules/onnxruntime-web/dist, or the archive
            that `npm pack` writes. None: the cache, or npm.

    Raises:
        ValueError: if they are not there, or are others than those of `VERSION`.
    """
    if path is not None:
        return checked(read_archive(path) if path.is_file() else read_folder(path), path)
    folder = cache_folder() / f"onnxruntime-web-{VERSION}"
    if folder.is_dir():
        return checked(read_folder(folder), folder)
    files = checked(_download(), Path(f"onnxruntime-web-{VERSION}.tgz"))
    with replacing_folder(folder) as draft:
        for name, content in files.items():
            write_parts(draft / name, [content])
    return files


def read_folder(folder: Path) -> dict[str, bytes]:
    """Read the files from a folder. Those that are not there are left out."""
    return {name: (folder / name).read_bytes() for name in SHA256 if (folder / name).is_file()}


def read_archive(path: Path) -> dict[str, bytes]:
    """Read the files from an archive of `npm pack`. Those that are not there are left out.

    Raises:
        ValueError: if it is no such archive.
    """
    files = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = member.name.removeprefix("package/dist/")
                if name in SHA256 and member.isfile() and member.size <= LARGEST:
                    content = archive.extractfile(member)
                    assert content is not None
                    files[name] = content.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not an archive of npm pack ({in_one_line(error, 80)})") from None
    return files


def checked(files: Mapping[str, bytes], where: Path) -> dict[str, bytes]:
    """Return `files` if they are all there, with the checksums of `VERSION`.

    Raises:
        ValueError: if not; names the file.
    """
    for name, expected in SHA256.items():
        if name not in files:
            raise ValueError(f"{where} has no {name}: give dist/ of onnxruntime-web {VERSION}")
        if hashlib.sha256(files[name]).hexdigest() != expected:
            raise ValueError(f"{where}: {name} is not that of onnxruntime-web {VERSION} (its checksum differs)")
    return dict(files)


def _download() -> dict[str, bytes]:
    package = f"onnxruntime-web@{VERSION}"
    npm = shutil.which("npm")
    if npm is None:
        raise ValueError(
            f"the page needs {package} and there is no npm to download it: install npm, or give its files with "
            "--runtime PATH"
        )
    with tempfile.TemporaryDirectory() as folder:
        try:
            subprocess.run([npm, "pack", package], cwd=folder, check=True, capture_output=True, timeout=SECONDS)
        except (subprocess.SubprocessError, OSError) as error:
            said = getattr(error, "stderr", None) or str(error).encode()
            raise ValueError(
                f"npm pack {package} failed ({in_one_line(said.decode(errors='replace'), 120)}): give its files with "
                "--runtime PATH"
            ) from None
        return read_archive(next(Path(folder).glob("*.tgz")))
