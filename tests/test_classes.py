"""Samples of classes: what a probe finds in them, distances class by class, and their place on the page."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluations import evaluation
from rich.console import Console
from tiny_model import Asked, AskedConfig, OnlySamples, TinyConfig

from genmodels import sampling
from genmodels.base import Generator
from genmodels.conditions import Condition, ConditionConfig
from genmodels.data.packed import Packed
from genmodels.data.rows import spread_rows
from genmodels.evaluation.classes import Classes, known_classes, label_accuracy, part
from genmodels.evaluation.columns import terminal_table
from genmodels.evaluation.compare import write_report
from genmodels.evaluation.context import Context, Part
from genmodels.evaluation.distances import frechet_distance
from genmodels.evaluation.evaluate import evaluate
from genmodels.evaluation.extractors import Extractor
from genmodels.evaluation.images import Images
from genmodels.evaluation.probe import standardised
from genmodels.evaluation.protocol import Protocol
from genmodels.evaluation.reference import Reference, reference_from
from genmodels.evaluation.results import OF_CLASS, Evaluation, Score, read_evaluation

NAMES = ("sea lion", "cat", "dog")
RATES = (0.6, 0.35, 0.05)


# ---- the probe ----


def classes(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(3, n, p=RATES)


def features(shown: np.ndarray, seed: int, noise: float = 0.3) -> np.ndarray:
    """Make features (N, 16): the class in one-hot form, mixed by a matrix, plus noise."""
    mixing = np.random.default_rng(99).normal(size=(3, 16))
    noises = np.random.default_rng(seed).normal(size=(len(shown), 16))
    return (np.eye(3)[shown] @ mixing + noise * noises) * np.geomspace(0.01, 100, 16) + 5


def accuracy(samples: np.ndarray, asked: np.ndarray, labels: np.ndarray | None = None, held: np.ndarray | None = None):
    train = classes(2000, 1) if labels is None else labels
    held = classes(1000, 2) if held is None else held
    sets = standardised(features(classes(2000, 1), 3), samples, features(classes(1000, 2), 4))
    return label_accuracy(sets[0], train, sets[1], asked, sets[2], held)


def test_samples_of_the_right_class_reach_the_accuracy_on_real_images() -> None:
    asked = np.arange(600) % 3
    found, real, left_out = accuracy(features(asked, 6), asked)
    assert list(found) == list(real) == [0, 1, 2] and left_out == {}
    assert min(real.values()) > 0.95
    assert np.mean(list(found.values())) == pytest.approx(np.mean(list(real.values())), abs=0.03)


def test_samples_that_ignore_the_label_are_right_by_chance_only() -> None:
    asked = np.arange(3000) % 3
    found, _, _ = accuracy(features(classes(3000, 7), 6), asked)
    assert np.mean(list(found.values())) == pytest.approx(1 / 3, abs=0.03)
    always, _, _ = accuracy(features(np.zeros(3000, int), 6), asked)  # the most frequent class
    assert np.mean(list(always.values())) == pytest.approx(1 / 3, abs=0.01)
    shifted, _, _ = accuracy(features((asked + 1) % 3, 6), asked)
    assert max(shifted.values()) < 0.05


def test_all_classes_weigh_the_same_in_the_probe_however_rare() -> None:
    asked = np.arange(600) % 3
    found, real, _ = accuracy(features(asked, 6, noise=1.5), asked)
    assert max(real.values()) - min(real.values()) < 0.25  # a probe of plain frequencies never finds "dog"
    assert found[2] > 0.5


def test_a_class_between_others_is_found() -> None:
    """The features lie on a line, on which the largest output of a regression is never that of class 1."""
    labels = np.arange(900) % 3
    line = labels[:, None] + 0.1 * np.random.default_rng(0).normal(size=(900, 1))
    train, samples, held = standardised(line[:600], line[600:750], line[750:])
    found, real, _ = label_accuracy(train, labels[:600], samples, labels[600:750], held, labels[750:])
    assert min(*found.values(), *real.values()) > 0.95


def test_images_without_a_label_do_not_count() -> None:
    asked = np.arange(900) % 3
    samples = features(asked, 6, 0.8)
    known = classes(2000, 1)
    wrong, unknown = known.copy(), known.copy()
    wrong[:1500] = np.random.default_rng(0).integers(0, 3, 1500)
    unknown[:1500] = -1
    held = classes(1000, 2)
    held[:300] = -1
    asked[:300] = -1
    every, part, clear = (accuracy(samples, asked, x, held) for x in (wrong, unknown, known))
    mean = [np.mean(list(found.values())) for found, _, _ in (every, part, clear)]
    assert mean[1] > mean[0] and mean[1] == pytest.approx(mean[2], abs=0.05)
    assert list(part[1]) == [0, 1, 2]


def test_classes_with_few_images_are_left_out_and_named() -> None:
    asked = np.arange(600) % 3
    held, train = classes(1000, 2), classes(2000, 1)
    held[np.flatnonzero(held == 2)[19:]] = -1
    found, real, left_out = accuracy(features(asked, 6), asked, held=held)
    assert list(found) == list(real) == [0, 1]
    assert left_out == {2: "19 held-out images of it, 20 are needed"}
    train[np.flatnonzero(train == 1)[5:]] = -1
    assert accuracy(features(asked, 6), asked, train)[2] == {1: "5 training images of it, 20 are needed"}
    with pytest.raises(ValueError, match="too few classes have 20 training images"):
        accuracy(features(asked, 6), asked, np.zeros(2000, int))


# ---- evaluate ----

SIZE, TRAIN, VALID = 16, 1500, 900


def colours(images: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(images.float(), 8).flatten(1)


EXTRACTOR = Extractor("colours", colours)


def animals(names: tuple[str, ...] = NAMES, rates: tuple[float, ...] = (0.5, 0.4, 0.1)) -> Packed:
    """Images of which each class has another brightness; a tenth has no label."""
    rng = np.random.default_rng(0)
    labels = rng.choice(3, TRAIN + VALID, p=rates)
    coarse = rng.normal(70, 15, (TRAIN + VALID, 2, 2, 3)) + 50 * labels[:, None, None, None]
    labels[rng.random(len(labels)) < 0.1] = -1
    return Packed(
        images=np.clip(coarse, 0, 255).astype(np.uint8).repeat(8, 1).repeat(8, 2),
        attributes=np.zeros((TRAIN + VALID, 0), np.int8),
        attribute_names=(),
        names=[f"{i}" for i in range(TRAIN + VALID)],
        splits=(np.arange(TRAIN + VALID) >= TRAIN).astype(np.uint8),
        manifest={"source": "animals", "crop": "none", "filter": "box"},
        labels=labels.astype(np.int32),
        class_names=names,
    )


def model(names: tuple[str, ...] = NAMES) -> Asked:
    """A model whose brightness grows with the number of the class."""
    torch.manual_seed(0)
    asked = Asked(AskedConfig(condition=ConditionConfig(classes=3, class_names=names)))
    with torch.no_grad():
        asked.decoder.weight.mul_(0.3)
        asked.decoder.weight[:, 2] = 0.05
        asked.decoder.bias.fill_(-1.0)
    return asked


def by_hand(images: np.ndarray) -> np.ndarray:
    return colours(torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)).numpy()


@pytest.fixture(scope="module")
def scored() -> Evaluation:
    return evaluate(model(), reference_from(animals(), "valid"), [EXTRACTOR], n=800, seed=4)


def test_a_model_of_classes_is_scored_by_class(scored: Evaluation) -> None:
    score, data = scored.scores["labels-colours"], animals()
    assert list(score.each) == list(score.each_floor) == list(NAMES)
    assert score.value == np.mean(list(score.each.values())) and score.floor == np.mean(list(score.each_floor.values()))
    assert score.value > 0.9 and score.floor > 0.9 and score.better == "higher"
    assert (score.protocol.n, score.protocol.classes) == (798, "sea lion, cat, dog")  # 266 of each
    assert str(score.protocol.train).endswith("(1,500)")

    labels = torch.arange(798) % 3
    samples = by_hand(sampling.sample(model(), 798, 4, Condition(labels=labels), progress=False))
    valid, held = data.images[TRAIN:], data.labels[TRAIN:]
    by_class = scored.scores["fd-by-class-colours"]
    assert list(by_class.each) == ["sea lion", "cat"] and by_class.protocol.n == 266
    for c, name in enumerate(by_class.each):
        real = by_hand(valid[held == c])
        assert by_class.each[name] == pytest.approx(frechet_distance(samples[labels == c], real), rel=1e-6)
        others = data.images[:TRAIN][data.labels[:TRAIN] == c]
        floor = frechet_distance(by_hand(others[spread_rows(len(others), 266)]), real)
        assert by_class.each_floor[name] == pytest.approx(floor, rel=1e-6)
    few = int((held == 2).sum())
    assert scored.absent["fd-by-class-colours of dog"] == f"266 samples and {few} held-out images of it, 256 are needed"


def test_labels_of_the_distance_are_as_frequent_as_those_of_real_images(scored: Evaluation) -> None:
    data = animals()
    labels = torch.from_numpy(data.labels[TRAIN:][spread_rows(VALID, 800)].astype(np.int64))
    samples = sampling.sample(model(), 800, 4, Condition(labels=labels), progress=False)
    score = scored.scores["fd-conditional-colours"]
    assert score.value == pytest.approx(frechet_distance(by_hand(samples), by_hand(data.images[TRAIN:])), rel=1e-6)
    assert score.floor == scored.scores["fd-colours"].floor and score.protocol.n == 800
    assert score.value < scored.scores["fd-colours"].value  # of samples without a label


def test_samples_of_each_class_are_kept_for_display(scored: Evaluation) -> None:
    kept = {name: images for name, images in scored.pictures.items() if name.startswith(OF_CLASS)}
    assert list(kept) == [f"samples of class {name}" for name in NAMES]
    samples = sampling.sample(model(), 24, 4, Condition(labels=torch.arange(24) % 3), progress=False)
    for c, images in enumerate(kept.values()):
        assert np.array_equal(images, samples[c::3])


def test_classes_are_matched_by_name(scored: Evaluation) -> None:
    """The data have the same classes in another order than the model."""
    data = animals()
    order = (2, 0, 1)
    numbers = np.array([*np.argsort(order), -1], np.int32)
    other = replace(data, class_names=tuple(NAMES[i] for i in order), labels=numbers[data.labels])
    reference = reference_from(other, "valid")
    again = part(Context(reference, [EXTRACTOR], 64, reference.images.take(slice(800)), model(), n=800, seed=4))
    for name in ("labels-colours", "fd-by-class-colours", "fd-conditional-colours"):
        assert again.scores[name].value == scored.scores[name].value
        assert again.scores[name].each == scored.scores[name].each
    numbered = ConditionConfig(classes=3)
    assert known_classes(reference_from(data, "valid"), numbered).names == NAMES


def test_what_is_missing_is_said() -> None:
    names = "labels-colours, fd-conditional-colours, fd-by-class-colours"
    plain = reference_from(animals(), "valid")

    def measured(reference: Reference, asked: Generator | None = None) -> Part:
        images = Images(reference.images.pixels[:256], "samples")
        return part(Context(reference, [EXTRACTOR], 64, images, asked or model(), n=256))

    def reason(reference: Reference, asked: Generator | None = None) -> str:
        return measured(reference, asked).absent[names]

    assert reason(plain, OnlySamples(TinyConfig())) == "only_samples takes no labels"
    assert reason(replace(plain, labels=None, class_names=())) == "animals, valid has no labels"
    assert reason(replace(plain, class_names=NAMES[:2])) == "animals, valid has 2 classes, the model 3"
    other = replace(plain, class_names=("sea lion", "cat", "fox"))
    assert reason(other) == "animals, valid has no class 'dog', which the model has"

    found = measured(reference_from(animals(), "train"))
    assert set(found.scores) == {"fd-conditional-colours"}
    assert "needs labels of training images" in found.absent["labels-colours"]
    assert found.absent["fd-by-class-colours"].startswith("no class has 256 samples and 256 held-out")
    assert "--n 768 gives as many samples" in found.absent["fd-by-class-colours"]

    many = Asked(AskedConfig(condition=ConditionConfig(classes=30)))
    found = measured(replace(plain, class_names=tuple(map(str, range(30)))), many)
    assert set(found.scores) == {"fd-conditional-colours"}
    why = "256 samples of 30 classes are 8 of each, 20 are needed: choose --n 600"
    assert found.absent == {"labels-colours, fd-by-class-colours": why}


def test_many_classes_are_not_listed_one_by_one() -> None:
    many = Classes(np.zeros(0), None, tuple(f"kind {i}" for i in range(60)))
    values, left_out = {c: c / 100 for c in range(25)}, {c: f"{c} images" for c in range(25, 60)}
    found = many.part("labels-x", "higher", "how", Protocol(), values, {0: 0.5}, left_out)
    score = found.scores["labels-x"]
    assert score.value == pytest.approx(0.12) and len(score.each) == 25
    assert score.floor is None and score.each_floor == {"kind 0": 0.5}  # not the mean of other classes
    assert found.absent == {"labels-x of 35 classes": "kind 25: 25 images, and so on"}
    fewer = many.part("labels-x", "higher", "how", Protocol(), dict.fromkeys(range(24), 0.5), {}, {})
    assert str(score.protocol.classes).startswith("25 classes (")
    assert score.protocol.classes != fewer.scores["labels-x"].protocol.classes


# ---- the report ----


def labelled(name: str, number: int, accuracy: float) -> Evaluation:
    e = evaluation(name, number)
    protocol = replace(e.scores["fd-faces"].protocol, classes="a <b> [c], cat")
    each = {"a <b> [c]": accuracy, "cat": 1.0}
    score = Score(
        (1 + accuracy) / 2, "higher", "probe", protocol, floor=0.9, each=each, each_floor=dict.fromkeys(each, 0.9)
    )
    distance = Score(3.0, "lower", "FD", protocol, each={"cat": 3.0})
    images = np.random.default_rng(number).integers(0, 256, (8, 32, 32, 3), np.uint8)
    pictures = e.pictures | {f"{OF_CLASS}{name}": images for name in each}
    return replace(e, scores=e.scores | {"labels-faces": score, "fd-by-class-faces": distance}, pictures=pictures)


def test_the_page_shows_each_class_with_its_accuracy(tmp_path: Path) -> None:
    both = [labelled("runs/one", 0, 0.25), labelled("runs/two", 1, 0.5)]
    page = write_report(both, tmp_path / "report").read_text()
    section = page[page.index("<h2>Classes</h2>") :]
    section = section[: section.index("</section>")]
    assert "a &lt;b&gt; [c]: found in 25% of the samples, and in 90% of real images" in section
    assert "cat: found in 100% of the samples" in section and section.count("<img") == 4
    rows = [row.split("</td>")[:-1] for row in section.split("<tr>")[2:]]
    cells = [[cell.replace("<td>", "").strip() for cell in row] for row in rows]
    assert cells[0][1:] == ["0.2500 (0.9000)", "0.5000 (0.9000)", "\u2013", "\u2013"]
    assert cells[1][1:] == ["1 (0.9000)", "1 (0.9000)", "3", "3"]
    assert (tmp_path / "report" / "figures" / "classes-runs-one.png").is_file()

    with open(tmp_path / "report" / "results.csv") as file:
        lines = {(row["subject"], row["measure"]): row for row in csv.DictReader(file)}
    assert lines["runs/two", "labels-faces of a <b> [c]"]["value"] == "0.5"
    assert lines["runs/two", "labels-faces of cat"]["floor"] == "0.9"


def test_scores_by_class_are_stored_and_printed(tmp_path: Path) -> None:
    whole = labelled("runs/one", 0, 0.25)
    (tmp_path / "metrics.json").write_text(whole.to_json())
    again = read_evaluation(tmp_path / "metrics.json")
    assert again.scores == whole.scores
    without = json.loads(whole.to_json())
    for score in without["scores"].values():  # as before scores had parts
        del score["each"], score["each_floor"], score["protocol"]["classes"]
    (tmp_path / "metrics.json").write_text(json.dumps(without))
    assert read_evaluation(tmp_path / "metrics.json").scores["labels-faces"].each == {}

    console = Console(width=200)
    with console.capture() as printed:
        console.print(terminal_table(whole))
    lines = [line for line in printed.get().splitlines() if "a <b> [c]" in line]
    assert len(lines) == 1 and "0.2500" in lines[0] and "0.9000" in lines[0]
    many = {f"class {i}": 0.5 for i in range(50)}
    scores = whole.scores | {"labels-faces": replace(whole.scores["labels-faces"], each=many)}
    with console.capture() as printed:
        console.print(terminal_table(replace(whole, scores=scores)))
    assert printed.get().count("class ") == 20 and "and 30 more" in printed.get()
