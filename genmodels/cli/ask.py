"""Commands of models that answer questions about images: ask and describe.

Signatures and docstrings are what `--help` prints. Slow imports are inside the functions.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from tyro.conf import Positional

from genmodels.cli.arguments import check_free, is_image, open_model, read_images
from genmodels.usage import UsageError, say

DESCRIBE = "Describe this person in three sentences."
"""Question of `describe`."""
BATCH = 64
"""Number of images that are described at a time."""


def ask(
    run: Positional[str],
    inputs: Positional[tuple[str, ...]],
    json: bool = False,
    temperature: float = 0.0,
    top_p: float = 1.0,
    max_tokens: int = 96,
    seed: int = 0,
) -> None:
    """Ask questions about images.

    Every question is asked about every image. A single answer is printed while it is generated.

    Args:
        run: run or model folder of a llava, or an id on the Hub.
        inputs: image files and questions, in any order.
        json: print one JSON object per answer, with image, question and answer.
        temperature: 0 takes the most likely token; otherwise tokens are drawn, and less than 1
            favours likely ones.
        top_p: draw among the fewest tokens whose probabilities add up to this.
        max_tokens: largest number of tokens of an answer.
        seed: seed of the tokens that are drawn.
    """
    paths = [Path(item) for item in inputs if is_image(item)]
    questions = [item for item in inputs if not is_image(item)]
    if folder := next(filter(os.path.isdir, questions), None):
        raise UsageError(f"{folder} is a folder: give image files, such as {os.path.join(folder, '*.png')}")
    if not paths or not questions:
        missing = (
            "image: give the path of an image file" if not paths else 'question, such as "Is this person smiling?"'
        )
        raise UsageError(f"there is no {missing}")

    from genmodels.data.conversations import with_image
    from genmodels.pictures import to_float

    for question in questions:
        with_image(question)
    model = open_model(run, "answer")
    images = to_float(read_images(paths, model.config.size), model.device)
    options = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "seed": seed}
    pairs = [(place, question) for place in range(len(paths)) for question in questions]
    if len(pairs) == 1 and not json and sys.stdout.isatty():
        _print_stream(model.stream(images[0], questions[0], **options))
        return
    answers = model.answer(images[[place for place, _ in pairs]], [question for _, question in pairs], **options)
    for (place, question), answer in zip(pairs, answers, strict=True):
        if json:
            print(_to_json({"image": str(paths[place]), "question": question, "answer": answer}))
        else:
            label = f"{paths[place]}: " if len(paths) > 1 else ""
            print(f"{label}{f'{question} ' if len(questions) > 1 else ''}{answer}")


def describe(
    run: Positional[str],
    images: Positional[Path],
    out: Path = Path("captions.csv"),
    question: str = DESCRIBE,
    temperature: float = 0.0,
    top_p: float = 1.0,
    max_tokens: int = 96,
    seed: int = 0,
    force: bool = False,
) -> None:
    """Write a caption for each image of a folder.

    The file has the columns file and caption. Beside the images, it is what `genmodels data pack
    folder` reads, so that a text-to-image model can be trained on them.

    Args:
        run: run or model folder of a llava, or an id on the Hub.
        images: folder or zip archive of images.
        out: csv file to write.
        question: what is asked about each image.
        temperature: 0 takes the most likely token; otherwise tokens are drawn.
        top_p: draw among the fewest tokens whose probabilities add up to this.
        max_tokens: largest number of tokens of a caption.
        seed: seed of the tokens that are drawn.
        force: overwrite an existing file.
    """
    import csv
    import io

    import numpy as np

    from genmodels.data.conversations import with_image
    from genmodels.data.decode import RefusedError, decode
    from genmodels.data.folder import folder_source
    from genmodels.pictures import to_float
    from genmodels.writing import write_text

    with_image(question)
    check_free(out, force, ".csv")
    model = open_model(run, "answer")
    source = folder_source(images)
    options = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "seed": seed}
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["file", "caption"])
    written, skipped = 0, list[str]()
    for start in range(0, len(source.names), BATCH):
        names, pixels = list[str](), list[np.ndarray]()
        for index in range(start, min(start + BATCH, len(source.names))):
            try:
                with source.reader.open(index) as file:
                    pixels.append(decode(file, "centre", model.config.size, aligned=False)[0])
                names.append(source.names[index])
            except RefusedError:
                skipped.append(source.names[index])
        if names:
            answers = model.answer(to_float(np.stack(pixels), model.device), [question] * len(names), **options)
            writer.writerows(zip(names, answers, strict=True))
            written += len(names)
    if not written:
        raise ValueError(f"{images} holds no image that can be read")
    if skipped:
        say(f"{len(skipped):,} files cannot be read as images, such as {skipped[0]}: left out")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, table.getvalue())
    print(f"{written:,} captions in {out}")


def _print_stream(parts: Iterable[str]) -> None:
    """Print an answer while it grows, by whole words: the next token may still change the last one,
    as it does in "black -", "black-haired", or in a letter of several bytes."""
    shown = text = ""
    for text in parts:
        words = text[: text.rfind(" ") + 1].rstrip()
        if words.startswith(shown):
            print(words[len(shown) :], end="", flush=True)
            shown = words
    print(text[len(shown) :])


def _to_json(record: dict[str, str]) -> str:
    return json.dumps(record, ensure_ascii=False)
