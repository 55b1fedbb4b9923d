"""Commands of models that embed images and sentences: retrieve and embed.

Signatures and docstrings are what `--help` prints. Slow imports are inside the functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from genmodels.cli.arguments import check_free, is_image, open_model, read_images
from genmodels.cli.real_images import EvaluationFlags, real_images
from genmodels.usage import UsageError

if TYPE_CHECKING:
    import numpy as np

    from genmodels.evaluation.extractors import Extractor
    from genmodels.evaluation.reference import Reference

OUT = Path("retrieved.png")


def retrieve(
    run: Positional[str],
    query: Positional[str],
    data: str | None = None,
    root: Path | None = None,
    crop: str | None = None,
    split: Literal["train", "valid", "test", "all"] | None = None,
    n: int = 16,
    out: Path = OUT,
    force: bool = False,
) -> None:
    """Find the images that are closest to a sentence, or the sentences that are closest to an image.

    Images are drawn as a sheet, the closest first, with their cosine similarity. Sentences are
    printed.

    Args:
        run: run or model folder, toyfaces/NAME, or an id on the Hub.
        query: a sentence, or an image file.
        data: what to search: a data set by name, a packed directory or a set of images. For an
            image, it is their captions, or the lines of a text file (.txt). By default, the data
            that the model was trained on.
        root: where the files of a data set are.
        crop: crop of the images. By default, that of the data set.
        split: split to search. By default, valid, or train if no image is held out.
        n: number of results.
        out: picture to write.
        force: overwrite an existing file.
    """
    if not query.strip():
        raise UsageError('the query is empty: give a sentence, such as "a smiling woman with glasses", or an image')
    if n < 1:
        raise UsageError(f"--n must be at least 1, got {n}")
    by_image = is_image(query)
    lines = Path(data) if data is not None and data.endswith(".txt") else None
    if by_image and out != OUT:
        raise UsageError(f"--out {out}: the sentences for an image are printed; --out is for the images for a sentence")
    if lines is not None and not by_image:
        raise UsageError(f"--data {lines} holds sentences: search them by an image file, or give --data images")

    from genmodels import pictures
    from genmodels.evaluation.captions import held_out_captions
    from genmodels.evaluation.embedder import embed_texts, embedder
    from genmodels.evaluation.features import extract
    from genmodels.evaluation.retrieval_sheet import Search, draw, nearest

    model = open_model(run, "embed")
    size, extractor = model.config.size, embedder(model)
    settings = EvaluationFlags(data, root, crop, split)
    if by_image:
        own = _embed_files([Path(query)], size, extractor)[0]
        if lines is None:
            reference = _opened(run, settings, size)
            texts = held_out_captions(reference, len(reference.images)).texts
        else:
            texts = _read_lines(lines)
        sentences = list(dict.fromkeys(texts))
        order, similarity = nearest(own, embed_texts(sentences, extractor), n)
        for row, value in zip(order, similarity, strict=True):
            print(f"{value:6.3f}  {sentences[row]}")
        return
    check_free(out, force, ".png", ".jpg", ".webp")
    (sentence,) = embed_texts([query], extractor)  # before the images are read
    images = _opened(run, settings, size).images
    order, similarity = nearest(sentence, extract(images, extractor), n)
    found = images.take(order)
    search = Search(query, found.pixels[: len(found)], [f"{value:.3f}" for value in similarity])
    pictures.save_grid(out, draw([search])[None])
    print(f"the {len(found)} images of {images.name} ({len(images):,}) that are closest to the sentence, in {out}")


def embed(
    run: Positional[str],
    inputs: Positional[tuple[str, ...]] = (),
    data: str | None = None,
    root: Path | None = None,
    crop: str | None = None,
    split: Literal["train", "valid", "test", "all"] | None = None,
    out: Path = Path("embeddings.npy"),
    force: bool = False,
) -> None:
    """Embed images or sentences as vectors of unit length, and write them to a file.

    The cosine similarity of an image and a sentence is the inner product of their vectors.

    Args:
        run: run or model folder, toyfaces/NAME, or an id on the Hub.
        inputs: image files; or sentences; or one text file (.txt) with a sentence per line. None:
            the images of --data.
        data: a data set by name, a packed directory or a set of images. By default, the data that
            the model was trained on.
        root: where the files of a data set are.
        crop: crop of the images. By default, that of the data set.
        split: split of the images. By default, valid, or train if no image is held out.
        out: file to write, float32 (N, D), one row for each input, in order.
        force: overwrite an existing file.
    """
    of_images = [is_image(item) for item in inputs]
    if inputs and (data or root or crop):
        raise UsageError("--data, --root and --crop choose images of a data set: leave them out, or give no inputs")
    if any(of_images) and not all(of_images):
        other = inputs[of_images.index(False)]
        raise UsageError(
            f"{other!r} is not an image file, and others are: embed images and sentences one after another"
        )
    if any(not item.strip() for item in inputs):
        raise UsageError("an input is empty: give image files, or sentences")

    from genmodels.data.columns import write_array
    from genmodels.evaluation.embedder import embed_texts, embedder
    from genmodels.evaluation.features import extract

    model = open_model(run, "embed")
    check_free(out, force, ".npy")
    size, extractor = model.config.size, embedder(model)
    if not inputs:
        images = _opened(run, EvaluationFlags(data, root, crop, split), size).images
        rows, what = extract(images, extractor), f"images of {images.name}"
    elif all(of_images):
        rows, what = _embed_files([Path(item) for item in inputs], size, extractor), "images"
    else:
        one_file = len(inputs) == 1 and inputs[0].endswith(".txt")
        texts = _read_lines(Path(inputs[0])) if one_file else list(inputs)
        rows, what = embed_texts(texts, extractor), "sentences"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_array(out, [rows], rows.dtype, rows.shape)
    print(f"{len(rows):,} {what}, each as {rows.shape[1]} numbers, in {out}")


def _embed_files(paths: Sequence[Path], size: int, extractor: Extractor) -> np.ndarray:
    """Embed the centre squares of image files: float32 (N, D)."""
    from genmodels.evaluation.features import extract
    from genmodels.evaluation.images import Images

    return extract(Images(read_images(paths, size), "image files"), extractor, cached=False)


def _opened(run: str, settings: EvaluationFlags, size: int) -> Reference:
    """Open the images of --data, or those that the model was trained on."""
    return real_images([run], settings).of_size(size)


def _read_lines(path: Path) -> list[str]:
    """Read a text file with one sentence per line.

    Raises:
        ValueError: if it is absent, or a line is empty; names the line.
    """
    from genmodels.reading import read_text

    try:
        lines = read_text(path).splitlines()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    empty = next((number for number, line in enumerate(lines, start=1) if not line.strip()), None)
    if not lines or empty is not None:
        raise ValueError(
            f"{path}: {f'line {empty} is empty' if lines else 'the file is empty'}; write a sentence per line"
        )
    return lines
