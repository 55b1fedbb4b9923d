"""What the page computes for a visitor, and the command line that gives the same images."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from genmodels import pictures, sampling
from genmodels.app.controls import condition_flags, flags
from genmodels.app.uploads import Picture
from genmodels.directions import attribute_directions, changed
from genmodels.variations import variations

if TYPE_CHECKING:
    from genmodels.data import Packed
    from genmodels.evaluation.reference import Reference

Values = Mapping[str, Any]
BATCH = 16
"""Images computed at a time, after which the page shows progress."""
DIRECTIONS = ("Smiling", "Male", "Eyeglasses", "Young", "Blond_Hair", "Wearing_Hat")
"""Attributes whose directions are offered, where the training images have them."""


@dataclass(frozen=True, eq=False)
class Served:
    """A model on the page.

    Attributes:
        name: the run, as the command line names it.
        model: the model.
        attributes: attributes of the images that the model was trained on.
        labelled: opens training images with the given attributes.
        searched: opens the images that are searched.
        folder: folder of the run, None for a model of the package or the Hub.
        cache: what was computed once, such as directions.
    """

    name: str
    model: Any
    attributes: tuple[str, ...]
    labelled: Callable[[tuple[str, ...]], Packed]
    searched: Callable[[], Reference]
    folder: Path | None = None
    cache: dict[str, Any] = field(default_factory=dict)

    def endpoint(self, title: str) -> str:
        """Name of the endpoint of a tab, for programs that use the page."""
        return re.sub(r"[^a-z0-9]+", "_", f"{self.name} {title}".lower()).strip("_")

    @property
    def is_deleted(self) -> bool:
        """Whether the folder of the run was there and is not any more."""
        return self.folder is not None and not self.folder.exists()


@dataclass(frozen=True, eq=False)
class Result:
    """Images, and how to make them again.

    Attributes:
        images: uint8 (M, H, W, 3), in the order in which the command draws them.
        captions: M short texts.
        command: command lines that make the same images.
        out: file that the command writes.
        kind: kind of the model that generated the images, "" if they are not generated.
        columns: images in a row of that file; None: as square as possible.
        sheet: what that file shows instead of a grid of the images, uint8 (H, W, 3), or None.
        given: how many of the images, from the first on, are the visitor's: they are not generated.
        files: further pictures that the command reads, by name: uint8 (H, W, 3).
        text: what the command prints, or "".
    """

    images: np.ndarray
    captions: Sequence[str]
    command: str
    out: str
    kind: str
    columns: int | None = None
    sheet: np.ndarray | None = None
    given: int = 0
    files: Mapping[str, np.ndarray] = field(default_factory=dict)
    text: str = ""

    def picture(self) -> Image.Image:
        """Draw what the command writes."""
        return pictures.grid(self.images, self.columns) if self.sheet is None else Image.fromarray(self.sheet)


def _result(
    served: Served,
    images: np.ndarray,
    captions: Sequence[str],
    words: Sequence[str],
    out: str,
    columns: int | None = None,
    subjects: Sequence[Picture] = (),
    generated: bool = True,
    given: int = 0,
    **more: Any,
) -> Result:
    """Return a result, with its command line below those that make its `subjects`.

    Args:
        words: the command line, without `genmodels` and the flag `--out`.
        out: file that the command writes, "" for none.
        generated: whether the model generated the images, which are marked then.
        given: how many images, from the first on, show a subject that may be an upload.
    """
    setups = list(dict.fromkeys(picture.setup for picture in subjects if picture.setup))
    command = shlex.join(["genmodels", *words, *(["--out", out] if out else [])])
    name = out or "result.png"
    kind = served.model.kind if generated else ""
    own = 0 if setups else given
    return Result(images, captions, "\n".join([*setups, command]), name, kind, columns, given=own, **more)


def sample(served: Served, n: int, seed: int, condition: Values, options: Values) -> Result:
    """Sample `n` images."""
    images = sampling.sample(served.model, n, seed, condition, batch_size=BATCH, progress=False, **options)
    words = ["sample", served.name, *flags({"n": n, "seed": seed}), *condition_flags(condition), *flags(options)]
    return _result(served, images, [f"seed {seed} #{i}" for i in range(n)], words, "samples.png")


def vary(
    served: Served, picture: Picture, n: int, strength: float, seed: int, condition: Values, options: Values
) -> Result:
    """Make `n` variations of a picture."""
    start = picture.pixels[None]
    made = variations(served.model, start, n, strength, seed, condition, batch_size=BATCH, **options)[0]
    settings = flags({"n": n, "strength": strength, "seed": seed})
    words = ["variations", served.name, picture.word, *settings, *condition_flags(condition), *flags(options)]
    captions = ["the image", *(f"seed {seed} #{i}" for i in range(n))]
    return _result(served, np.concatenate([start, made]), captions, words, "variations.png", n + 1, [picture], given=1)


def reconstruct(served: Served, picture: Picture) -> Result:
    """Reconstruct a picture."""
    start = picture.pixels[None]
    images = np.concatenate([start, sampling.reconstruct(served.model, start)])
    words = ["reconstruct", served.name, picture.word]
    return _result(served, images, ["the image", "reconstruction"], words, "pairs.png", 1, [picture], False)


def interpolate(
    served: Served, first: int, second: int, frames: int, options: Values, prompts: Sequence[str] = ()
) -> Result:
    """Interpolate between the first images of two seeds, or between two prompts from the noise of the first.

    Args:
        prompts: two sentences; none, or empty ones, for the seeds.
    """
    sentences = [sentence for prompt in prompts if (sentence := prompt.strip())]
    if len(sentences) == 1:
        raise ValueError("the way from one prompt to another needs both: write the other one too, or none")
    if wrong := next((sentence for sentence in sentences if sentence.startswith("-")), None):
        raise ValueError(f"the prompt {wrong!r} begins with a dash, as flags of a command line do: leave it out")
    seeds = [first] if sentences else [first, second]
    images = sampling.interpolate(served.model, seeds, frames, prompts=sentences, **options)[0]
    settings = {"seeds": seeds, "prompts": sentences or None, "frames": frames}
    words = ["interpolate", served.name, *flags(settings), *flags(options)]
    return _result(served, images, _between(frames), words, "interpolation.png", frames)


def morph(served: Served, first: Picture, second: Picture, frames: int, options: Values) -> Result:
    """Interpolate between two pictures."""
    images = sampling.morph(served.model, np.stack([first.pixels, second.pixels]), frames, **options)[0]
    settings = flags({"images": [first.word, second.word], "frames": frames})
    words = ["interpolate", served.name, *settings, *flags(options)]
    return _result(served, images, _between(frames), words, "interpolation.png", frames, [first, second])


def _between(frames: int) -> list[str]:
    return [f"{round(100 * k / max(frames - 1, 1))} %" for k in range(frames)]


def edit(served: Served, picture: Picture, strength: float, seed: int, condition: Values, options: Values) -> Result:
    """Edit a picture."""
    start = picture.pixels[None]
    images = np.concatenate([start, sampling.edit(served.model, start, strength, seed, condition, **options)])
    settings = flags({"strength": strength, "seed": seed})
    words = ["edit", served.name, picture.word, *settings, *condition_flags(condition), *flags(options)]
    captions = ["the image", f"strength {strength:g}, seed {seed}"]
    return _result(served, images, captions, words, "edited.png", 2, [picture], given=1)


def inpaint(
    served: Served,
    picture: Picture,
    unknown: np.ndarray | None,
    known: float,
    n: int,
    seed: int,
    condition: Values,
    options: Values,
) -> Result:
    """Complete a picture in `n` ways.

    Args:
        unknown: region to complete, bool (size, size); None: the rows below the fraction `known`.
    """
    size, start = served.model.config.size, picture.pixels[None]
    visible = pictures.upper_rows(size, known) if unknown is None else ~unknown
    region: dict[str, Any] = {"known": known}
    files = {}
    if unknown is not None:
        region = {"mask": "mask.png"}
        files["mask.png"] = np.where(unknown[:, :, None], np.uint8(255), np.uint8(0)).repeat(3, 2)
    made = sampling.inpaint(served.model, start, visible, n, seed, condition, batch_size=BATCH, **options)[0]
    masked = np.where(visible[:, :, None], start, np.uint8(127))
    settings = flags(region | {"n": n, "seed": seed})
    words = ["inpaint", served.name, picture.word, *settings, *condition_flags(condition), *flags(options)]
    captions = ["the image", "what is known", *(f"seed {seed} #{i}" for i in range(n))]
    images = np.concatenate([start, masked, made])
    return _result(served, images, captions, words, "completed.png", n + 2, [picture], given=2, files=files)


def change(served: Served, picture: Picture | None, seed: int, amounts: Mapping[str, float]) -> Result:
    """Change attributes of a picture, or of image 0 of a seed, along latent directions.

    Args:
        amounts: by attribute, in distances between faces without and with it. All of them together
            are added.
    """
    if "directions" not in served.cache:
        names = tuple(amounts)
        data = served.labelled(names)
        found = attribute_directions(served.model, np.asarray(data.images), data.attributes, names)
        served.cache["directions"] = dict(zip(names, found, strict=True))
    start = None if picture is None else picture.pixels[None]
    moved = {name: amount for name, amount in amounts.items() if amount} or dict.fromkeys(list(amounts)[:1], 0.0)
    images = changed(served.model, start, served.cache["directions"], moved, 1, seed)[0]  # (2, H, W, 3)
    together = ",".join(f"{name}={amount:g}" for name, amount in moved.items())
    subject = [picture.word] if picture else flags({"n": 1, "seed": seed})
    words = ["traverse", served.name, *subject, *flags({"change": together})]
    captions = ["before", together.replace(",", ", ")]
    return _result(served, images, captions, words, "directions.png", 2, [picture] if picture else [])


def trajectory(served: Served, n: int, seed: int, frames: int, condition: Values, options: Values) -> Result:
    """Show the steps by which `n` images are sampled: a row of images, and a row of predictions."""
    steps = sampling.trajectory(served.model, n, seed, condition, **options)
    shown = np.linspace(0, steps.shape[2] - 1, min(frames, steps.shape[2])).round().astype(int)
    images = steps[:, :, shown].reshape(-1, *steps.shape[3:])  # (n 2 frames, H, W, 3)
    settings = flags({"n": n, "seed": seed, "frames": frames})
    words = ["trajectory", served.name, *settings, *condition_flags(condition), *flags(options)]
    captions = [f"{kind} {k}" for _ in range(n) for kind in ("step", "prediction at step") for k in shown]
    return _result(served, images, captions, words, "trajectory.png", len(shown))


def retrieve(served: Served, sentence: str, n: int) -> Result:
    """Find the `n` images that are closest to a sentence."""
    from genmodels.evaluation.embedder import embed_texts, embedder
    from genmodels.evaluation.features import extract
    from genmodels.evaluation.retrieval_sheet import Search, draw, nearest

    if not sentence.strip():
        raise ValueError('the sentence is empty: write one, such as "a smiling woman with glasses"')
    extractor = embedder(served.model)
    (query,) = embed_texts([sentence], extractor)
    images = _searched(served).images
    order, similarity = nearest(query, extract(images, extractor, progress=False), n)
    closest = images.take(order)
    pixels, values = closest.pixels[: len(closest)], [f"{value:.3f}" for value in similarity]
    sheet = draw([Search(sentence, pixels, values)])
    words = ["retrieve", served.name, sentence, *flags({"n": n})]
    captions = [f"similarity {value}" for value in values]
    return _result(served, pixels, captions, words, "retrieved.png", generated=False, sheet=sheet)


def captions(served: Served, picture: Picture, n: int) -> Result:
    """Find the `n` captions that are closest to a picture."""
    from genmodels.evaluation.captions import held_out_captions
    from genmodels.evaluation.embedder import embed_texts, embedder
    from genmodels.evaluation.features import extract
    from genmodels.evaluation.images import Images
    from genmodels.evaluation.retrieval_sheet import nearest

    extractor, reference = embedder(served.model), _searched(served)
    own = extract(Images(picture.pixels[None], "picture"), extractor, cached=False, progress=False)[0]
    if "captions" not in served.cache:
        texts = list(dict.fromkeys(held_out_captions(reference, len(reference.images)).texts))
        served.cache["captions"] = texts, embed_texts(texts, extractor)
    texts, embeddings = served.cache["captions"]
    order, similarity = nearest(own, embeddings, n)
    lines = "\n".join(f"{value:6.3f}  {texts[row]}" for row, value in zip(order, similarity, strict=True))
    words = ["retrieve", served.name, picture.word, *flags({"n": n})]
    return _result(served, picture.pixels[None], ["the image"], words, "", 1, [picture], False, text=lines)


def ask(served: Served, picture: Picture, question: str) -> Result:
    """Answer a question about a picture."""
    pixels = pictures.to_float(picture.pixels[None], served.model.device)
    (answer,) = served.model.answer(pixels, [question])
    words = ["ask", served.name, picture.word, question]
    return _result(served, picture.pixels[None], ["the image"], words, "", 1, [picture], False, text=answer)


def _searched(served: Served) -> Reference:
    """Open the images to search, once."""
    if "searched" not in served.cache:
        served.cache["searched"] = served.searched()
    reference: Reference = served.cache["searched"]
    return reference
