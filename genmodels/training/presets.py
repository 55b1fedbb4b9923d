"""Presets: files of settings that come with the package, which --config takes by their name."""

from __future__ import annotations

from pathlib import Path


def presets() -> dict[str, Path]:
    """Return the files of settings in configs/ by name: beside the package in a checkout, inside it
    when installed. Other files there configure launchers."""
    package = Path(__file__).parent.parent
    folder = next((f for f in (package / "configs", package.parent / "configs") if f.is_dir()), None)
    files = [] if folder is None else sorted(folder.glob("*.yaml"))
    return {path.stem: path for path in files if "\nfamily: " in path.read_text(encoding="utf-8")}


def find_config(name: str) -> Path:
    """Return the file that --config names: a path or, if no file has it, a preset.

    Raises:
        ValueError: if there is neither.
    """
    path = Path(name)
    if path.is_file() or path.suffix or path.name != name:
        return path
    known = presets()
    if name not in known:
        raise ValueError(f"--config {name}: no such file; the presets are {', '.join(known)}")
    return known[name]
