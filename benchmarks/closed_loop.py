"""From a sentence to a face to a sentence: what a LLaVA finds in the faces that prompts asked for.

    genmodels train clip --output runs/clip --minutes 3
    genmodels train lm --output runs/lm --minutes 2
    genmodels train llava --clip runs/clip --lm runs/lm --output runs/projector --minutes 1
    genmodels train llava --projector runs/projector --output runs/llava --minutes 10
    python benchmarks/closed_loop.py toyfaces/text --llava runs/llava --guidance 3 --out loop.png

For each pair of attributes that training captions never state together, prompts state the presence
or the absence of both. The text-to-image model draws a face of each prompt, and the LLaVA is asked
about both attributes of every face. The share of requested facts that it finds is printed next to the
share that a linear probe of real faces finds, and the share of faces on which both agree. The figure
shows faces with their prompt, and how the LLaVA describes them.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from prompts import SIGNS, Probe, balanced, stating
from shared import RunSettings

from genmodels import pictures, sampling
from genmodels.cli.arguments import check_free, load
from genmodels.conditions import condition_of
from genmodels.data.grammar import HELD_OUT_PAIRS
from genmodels.data.questions import parse_yes_no, yes_no_question
from genmodels.data.sentences import Draws
from genmodels.training.answers import draw

SHOWN = 2
"""Faces of each pair in the figure."""


@dataclass(frozen=True)
class Settings(RunSettings):
    """The model must read text. `n` is the number of samples of a pair."""

    llava: Path = Path("runs/llava")
    """Run folder of a LLaVA that was trained on the same data."""
    n: int = 64
    guidance: float = 3.0
    """Guidance of all samples."""
    out: Path = Path("loop.png")
    """Picture to write."""


def main(settings: Settings) -> None:
    s = settings
    check_free(s.out, s.force, ".png")
    model, data = s.open()
    asked = load(str(s.llava))
    pairs = [pair for pair in HELD_OUT_PAIRS if {*pair} <= {*data.attribute_names}]
    probe = Probe(data.split("train"), [*dict.fromkeys(name for pair in pairs for name in pair)])
    rows, images, lines = [], list[np.ndarray](), list[list[str]]()
    for number, pair in enumerate(pairs):
        row, samples, texts = loop(s, model, asked, probe, pair, number + 1)
        rows.append(row)
        print(
            f"{' and '.join(pair)}: LLaVA {row['llava']:.2f}, probe {row['probe']:.2f}, they agree {row['agree']:.2f}",
            flush=True,
        )
        described = asked.answer(
            pictures.to_float(samples[:SHOWN], asked.device), ["Describe this person in three sentences."] * SHOWN
        )
        images += list(samples[:SHOWN])
        for text, description in zip(texts[:SHOWN], described, strict=True):
            lines.append([*textwrap.wrap(f"prompt: {text}", 110), "", *textwrap.wrap(f"answer: {description}", 110)])
    means = {key: float(np.mean([row[key] for row in rows])) for key in ("llava", "probe", "agree")}
    print(f"mean: LLaVA {means['llava']:.2f}, probe {means['probe']:.2f}, they agree {means['agree']:.2f}; chance 0.5")
    pictures.save_grid(s.out, draw(np.stack(images), lines)[None])
    s.write(rows, guidance=s.guidance, asked=s.llava.name, **means)


def loop(
    s: Settings, model: Any, asked: Any, probe: Probe, pair: tuple[str, str], seed: int
) -> tuple[dict[str, Any], np.ndarray, list[str]]:
    """Draw faces for the four combinations of a pair, and look for what was requested."""
    wanted = np.array([SIGNS[i % len(SIGNS)] for i in range(s.n)])  # (N, 2)
    texts = [stating(dict(zip(pair, row, strict=True)), i) for i, row in enumerate(wanted.tolist())]
    condition = condition_of(model, {"prompt": texts}, s.n)
    samples = sampling.sample(model, s.n, seed, condition, guidance=s.guidance, progress=False)
    images = pictures.to_float(samples, asked.device)
    found, agree = dict[str, list[float]](llava=[], probe=[]), list[float]()
    for column, name in enumerate(pair):
        questions = [yes_no_question(name, Draws("loop", name, i), "test") for i in range(s.n)]
        said = np.array([parse_yes_no(text) for text in asked.answer(images, [q for q, _ in questions], max_tokens=1)])
        seen = said * np.array([yes for _, yes in questions])  # values of the attribute
        shown = probe.shows(samples, name)
        for key, values in (("llava", seen), ("probe", shown)):
            found[key].append(balanced(values == wanted[:, column], wanted[:, column]))
        agree.append(float(np.mean(seen == shown)))
    return (
        {"pair": pair, "agree": float(np.mean(agree))} | {k: float(np.mean(v)) for k, v in found.items()},
        samples,
        texts,
    )


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
