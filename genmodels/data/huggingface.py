"""Data sets of Hugging Face: parquet and arrow files, folders of save_to_disk, and Hub ids.

Images, labels and captions are columns. Nothing in a data set is executed: `datasets` reads only
files of data since version 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genmodels.data.arrow import ENDINGS, Block, BlockReader, read_schema
from genmodels.data.cells import captions_of, class_of
from genmodels.data.classes import check_classes, number_classes
from genmodels.data.shards import file_entry, split_of, splits_of
from genmodels.data.source import Files, Source, fingerprint, name_parts, readable
from genmodels.data.tables import common_folder
from genmodels.hub import TIMEOUT, is_hub_id
from genmodels.reading import in_one_line

LABEL = "label"
"""Name of the column of labels, if there is one and no other is chosen."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read."""

    image: str | None = None
    """Images. None: the only column of images."""
    label: str | None = None
    """Labels. None: "label", if there is such a column."""
    text: str | None = None
    """Captions. None: no captions."""


@dataclass(frozen=True)
class _File:
    """A file of a data set: its relative name, its path, and the code of its split or None."""

    name: str
    path: Path
    split: int | None


def huggingface_source(root: Path, columns: Columns = Columns()) -> Source:
    """Return the images of a data set, in its order.

    Args:
        root: a folder of .parquet or .arrow files, one such file, a folder of
            `Dataset.save_to_disk`, or the id of a data set on the Hub, user/name.
        columns: names of the columns.

    Raises:
        FileNotFoundError: if there is no such folder, file or data set.
        ValueError: if a file is damaged, a column is absent, or `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise ValueError("data huggingface needs the library datasets: pip install 'genmodels[datasets]'") from None
    files = _find_files(root)
    notes, blocks, of_file = list[str](), list[Block](), list[int | None]()
    first, _ = _read_features(files[0].path)
    columns = _choose(first, columns, files[0].path)
    class_names = _class_names(first, columns)
    for file in files:
        features, own = _read_features(file.path)
        _check_columns(features, columns, class_names, file.path)
        blocks += own
        of_file += [file.split] * sum(block.rows for block in own)
    if not of_file:
        raise ValueError(f"{root} holds no images: its files have no rows")
    image = str(columns.image)
    names = _names(blocks, image, _has_paths(first[image]))
    class_names, labels = _labels(blocks, columns, class_names, root)
    text = None if columns.text is None else [_read_caption(cell, root) for cell in _cells(blocks, columns.text)]
    splits = splits_of(names, of_file, notes)
    entries = [file_entry(file.path, file.name) for file in files]
    return Source(
        title=f"huggingface {readable(root.name)} ({len(names):,} images)",
        where=root,
        names=names,
        # Images of the Hub may be files in its cache.
        reader=BlockReader(blocks, image, None if root.exists() else Path(datasets.config.HF_CACHE_HOME)),
        attributes=np.zeros((len(names), 0), np.int8),
        attribute_names=(),
        splits=splits,
        identities=None,
        stamp=fingerprint(entries, repr(columns), splits, labels, repr(class_names), repr(text)),
        text=text,
        labels=labels,
        class_names=class_names,
        notes=notes,
    )


def _find_files(root: Path) -> list[_File]:
    """Return the files of a data set with their splits.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the folder of save_to_disk is damaged.
    """
    if root.is_file():
        return [_File(root.name, root, split_of(root.name))]
    if root.is_dir() and not any((root / name).is_file() for name in ("dataset_dict.json", "state.json")):
        names = sorted(entry.name for entry in Files(root).entries() if entry.name.endswith(ENDINGS))
        if not names:
            raise FileNotFoundError(f"{root} holds no file whose name ends with {' or '.join(ENDINGS)}")
        return [_File(name, root / name, split_of(name)) for name in names]
    loaded = _load_from_disk(root) if root.is_dir() else _load_from_hub(str(root))
    for own in loaded.values():
        if own.num_rows != own.data.num_rows:
            raise ValueError(f"{root} holds a selection of rows: save it again with flatten_indices()")
    return [
        _File(f"{name}/{path.parent.name}/{path.name}", path, split_of(name))
        for name, own in loaded.items()
        for path in (Path(file["filename"]) for file in own.cache_files)
    ]


def _load_from_disk(root: Path) -> Mapping[str, Any]:
    import datasets

    files = Files(root)
    list(files.entries())
    for name, reason in files.left_out:  # such as a pipe, for which datasets would wait
        raise ValueError(f"{root / name} cannot be read: {reason}")
    try:
        loaded = datasets.load_from_disk(str(root))
    except Exception as error:  # damaged JSON or arrow files raise errors of many kinds
        reason = in_one_line(error, 160) or type(error).__name__
        raise ValueError(f"{root} is not a complete folder of save_to_disk ({reason}): write it again") from None
    return loaded if isinstance(loaded, datasets.DatasetDict) else {"": loaded}


def _load_from_hub(name: str) -> Mapping[str, Any]:
    """Download a data set into the cache of the Hub, or find it there if HF_HUB_OFFLINE is set.

    Raises:
        FileNotFoundError: if `name` is not an id, or the Hub does not answer or has no such data.
    """
    user = name.split("/")[0]
    if not is_hub_id(name) or Path(user).exists():
        raise FileNotFoundError(f"{name}: no such folder or file of parquet or arrow data")
    try:
        import datasets
        from huggingface_hub import HfApi, constants

        if not constants.HF_HUB_OFFLINE:
            HfApi().dataset_info(name, timeout=TIMEOUT)  # load_dataset itself tries many times
        loaded: Mapping[str, Any] = datasets.load_dataset(name)
    except Exception as error:  # the Hub client raises many types, which mean the same to the caller
        reason = in_one_line(error, 160) or type(error).__name__
        raise FileNotFoundError(
            f"{name}: no such folder here, and the Hub has no such data set or cannot be reached ({reason}); without a "
            "network, copy its parquet files here and give their folder"
        ) from None
    return loaded


def _read_features(path: Path) -> tuple[Mapping[str, Any], list[Block]]:
    """Return the columns of a file with their types, and its rows."""
    import datasets

    schema, blocks = read_schema(path)
    try:
        return datasets.Features.from_arrow_schema(schema), blocks
    except Exception as error:  # types that this version does not know, and damaged JSON
        reason = in_one_line(error, 160) or type(error).__name__
        raise ValueError(f"{path}: the types of its columns cannot be read ({reason}): upgrade datasets") from None


def _choose(features: Mapping[str, Any], columns: Columns, path: Path) -> Columns:
    """Fill in the names of the columns that were not chosen.

    Raises:
        ValueError: if there is no column of images, or more than one.
    """
    images = [name for name, feature in features.items() if _is_image(feature)]
    if columns.image is None and len(images) != 1:
        problem = "has no column of images"
        if images:
            problem = f"has several columns of images ({', '.join(images)})"
        raise ValueError(f"{path} {problem}; its columns are {_listed(features)}; --image-column chooses one")
    label = LABEL if columns.label is None and LABEL in features else columns.label
    return Columns(columns.image or images[0], label, columns.text)


def _check_columns(features: Mapping[str, Any], columns: Columns, class_names: Sequence[str], path: Path) -> None:
    """Check that a file has the columns, and the same classes as the first file."""
    for name in filter(None, (columns.image, columns.label, columns.text)):
        if name not in features:
            raise ValueError(f"{path} has no column {name!r}; its columns are {_listed(features)}")
    feature = features[str(columns.image)]
    if not _is_image(feature) and str(getattr(feature, "dtype", "")) not in ("binary", "large_binary"):
        raise ValueError(f"{path}: column {columns.image!r} does not hold images; its columns are {_listed(features)}")
    if list(_class_names(features, columns)) != list(class_names):
        raise ValueError(f"{path}: column {columns.label!r} has other classes than the first file of the data set")


def _is_image(feature: Any) -> bool:
    """Return whether a column is of type Image, or was written as such: bytes and a path."""
    import datasets

    return isinstance(feature, datasets.Image) or (
        isinstance(feature, dict) and str(getattr(feature.get("bytes"), "dtype", "")) in ("binary", "large_binary")
    )


def _has_paths(feature: Any) -> bool:
    return _is_image(feature) and (not isinstance(feature, dict) or "path" in feature)


def _class_names(features: Mapping[str, Any], columns: Columns) -> tuple[str, ...]:
    """Return the names of the classes that the type of the column lists, if it does."""
    import datasets

    feature = None if columns.label is None else features.get(columns.label)
    return tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else ()


def _listed(features: Mapping[str, Any]) -> str:
    """Return names and types of columns."""
    return ", ".join(f"{name} ({_type_of(feature)})" for name, feature in features.items()) or "none"


def _type_of(feature: Any) -> str:
    kind = type(feature).__name__
    return str(feature.dtype) if kind == "Value" else kind


def _cells(blocks: Sequence[Block], column: str) -> list[Any]:
    return [cell for block in blocks for cell in block.read(column).to_pylist()]


def _names(blocks: Sequence[Block], column: str, has_paths: bool) -> list[str]:
    """Return the paths that are stored with the images if they differ, or else their numbers."""
    paths = [path for block in blocks for path in block.read(column, "path").to_pylist()] if has_paths else [None]
    names = ["/".join(part for part in name_parts(path or "") if part != "..") for path in paths]
    if all(names) and len(set(names)) == len(names):
        # Absolute paths hold folders of the computer that wrote them, which say nothing about the images.
        common = common_folder(names) if any(Path(str(path)).is_absolute() for path in paths) else ""
        return [name.removeprefix(common) for name in names]
    return [f"{i:08d}" for i in range(sum(block.rows for block in blocks))]


def _labels(
    blocks: Sequence[Block], columns: Columns, names: tuple[str, ...], root: Path
) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Return the names of the classes and the class of each image, or () and None."""
    if columns.label is None:
        return (), None
    where = f"{root}, column {columns.label!r}"
    try:
        known = [class_of(cell) for cell in _cells(blocks, columns.label)]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if not names:
        names, labels = number_classes(known, where)
        return names, labels if names else None
    check_classes(names, where)
    numbers = np.array([-1 if label is None else int(label) for label in known])
    if numbers.max() >= len(names):
        raise ValueError(f"{where}: the label {numbers.max()} is not the number of one of its {len(names)} classes")
    return names, numbers.astype(np.int32)


def _read_caption(cell: Any, root: Path) -> tuple[str, ...]:
    try:
        return captions_of(cell)
    except ValueError as error:
        raise ValueError(f"{root}: {error}") from None
