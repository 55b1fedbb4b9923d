"""Compute at sampling time: best of n in closed form, search over noises, and counted costs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import Tiny, TinyConfig

from genmodels import sampling
from genmodels.candidates import BestOf
from genmodels.cli import main
from genmodels.evaluation.cost import FEW, sampling_operations
from genmodels.evaluation.extractors import Extractor
from genmodels.evaluation.images import Images
from genmodels.evaluation.protocol import Protocol
from genmodels.evaluation.realism import most_realistic
from genmodels.evaluation.reference import Reference
from genmodels.scaling.inference import Point, Setting, frontier, measure, settings_of, verifier_operations
from genmodels.scaling.inference_report import summary, write_report
from genmodels.scaling.search import MixedNoise, search
from genmodels.types import Noise


def test_best_of_n_of_a_table_equals_its_closed_form() -> None:
    """P(item k is kept) = F(k)^n - F(k - 1)^n, where F is the probability of a score of at most that of k."""
    probability = np.array([0.4, 0.3, 0.2, 0.1])
    score = np.array([1.0, 3.0, 0.0, 2.0])
    order = np.argsort(score)
    below = np.concatenate([[0], np.cumsum(probability[order])])
    rng = np.random.default_rng(0)
    draws = 40_000
    for n in (1, 2, 5, 16):
        closed = np.empty(4)
        closed[order] = below[1:] ** n - below[:-1] ** n
        best = BestOf(n, lambda items: score[items[:, 0]])
        kept = best.choose(lambda candidate: rng.choice(4, (draws, 1), p=probability))[:, 0]
        frequency = np.bincount(kept, minlength=4) / draws
        assert np.abs(frequency - closed).max() < 5 * 0.5 / draws**0.5


def noise(candidate: int, rows: range = range(6)) -> Noise:
    return Noise.for_images(3, rows, candidate=candidate)


def test_mixed_noise_is_standard_normal_and_uniform() -> None:
    rows = range(64)
    weights = torch.tensor([[0.6, 0.8]]).repeat(64, 1)
    parts = [noise(0, rows), noise(1, rows)]
    normal = MixedNoise(parts, weights).normal(500)
    assert float(normal.mean()) == pytest.approx(0, abs=0.03) and float(normal.std()) == pytest.approx(1, abs=0.02)
    expected = 0.6 * noise(0, rows).normal(500) + 0.8 * noise(1, rows).normal(500)
    assert torch.allclose(normal, expected)
    uniform = MixedNoise([noise(0, rows), noise(1, rows)], weights).uniform(500)
    counts = torch.histc(uniform, 10, 0, 1) / uniform.numel()
    assert counts.numpy() == pytest.approx(np.full(10, 0.1), abs=0.01) and float(uniform.max()) < 1


def test_a_search_keeps_the_best_image_that_it_has_seen() -> None:
    seen: list[np.ndarray] = []

    def draw(some: Noise) -> np.ndarray:
        seen.append(some.normal(2).numpy())
        return seen[-1].copy()

    def score(images: np.ndarray) -> np.ndarray:
        return -((images - 1) ** 2).sum(1)

    found = search(draw, score, noise, rounds=4, neighbours=3)
    every = np.stack([score(images) for images in seen])  # (13, 6)
    assert len(seen) == 1 + 4 * 3
    assert np.array_equal(score(found), every.max(0))
    assert (every.max(0) >= every[0]).all() and every.max(0).mean() > every[0].mean() + 0.5
    assert np.allclose(seen[0], noise(0).normal(2).numpy())
    alone = search(draw, score, lambda k: noise(k, range(2, 3)), rounds=4, neighbours=3)
    assert np.allclose(alone[0], found[2])  # an image does not depend on the others of its batch


def extractor(name: str, side: int) -> Extractor:
    weight = torch.ones(side * side * 3, 4)

    def network(pixels: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.adaptive_avg_pool2d(pixels.float(), side).flatten(1)
        return torch.cat([small, small @ weight[: small.shape[1]]], 1)

    return Extractor(name, network, weights=name)


@pytest.fixture(scope="module")
def reference() -> Reference:
    pixels = np.random.default_rng(0).integers(0, 256, (80, 8, 8, 3), np.uint8)
    real, train = Images(pixels[:40], "real"), Images(pixels[40:], "train")
    return Reference(real, Protocol(size=8), (train,), train)


def test_costs_count_all_candidates_and_the_verifier(reference: Reference, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Tiny(TinyConfig()).eval()
    judge, verifier = extractor("judge", 2), extractor("verifier", 3)
    settings = [Setting(), Setting("best-of", 4), Setting("search", 5)]
    points = measure("tiny", model, settings, reference, judge, verifier, n=24, save=tmp_path / "samples")
    one = sampling_operations(model, lambda: model.generate(FEW, batch_size=FEW))[0] / FEW
    verified = verifier_operations(verifier, 8)
    assert verified == 2 * 27 * 4
    assert [p.flops for p in points] == pytest.approx([one, 4 * (one + verified), 5 * (one + verified)])
    assert [p.evaluations for p in points] == [1, 4, 5]
    assert len(list((tmp_path / "samples").glob("*.npy"))) == 3
    best = most_realistic(4, reference.train, verifier, 64) if reference.train else None
    alone = sampling.sample(model, 24, progress=False, best=best)
    assert np.array_equal(np.load(tmp_path / "samples" / "tiny-best-of-4.npy"), alone)
    page = write_report(points, judge, verifier, 24, tmp_path / "out")
    assert page.read_text().count("<svg") == 1
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert stored["verifier"]["name"] == "verifier" and len(stored["points"]) == 3
    assert "judged by fd-judge; candidates by verifier" in summary(points, judge, verifier)[0]
    with pytest.raises(ValueError, match="judge would judge the samples that it chose"):
        measure("tiny", model, settings, reference, judge, judge, n=24)


def test_settings_are_those_that_a_model_has() -> None:
    found = settings_of(Tiny(TinyConfig()), steps=(2, 4), guidance=(1.0,), candidates=(1, 2, 8))
    assert found == [Setting(), Setting("best-of", 2), Setting("best-of", 8), Setting("search", 5)]


def test_the_frontier_has_no_point_that_another_beats() -> None:
    numbers = [(1, 9.0), (2, 10.0), (2, 5.0), (3, 5.0), (4, 1.0)]
    points = [Point("m", str(i), "sample", 1, 1, 1, flops, 0.0, fd) for i, (flops, fd) in enumerate(numbers)]
    assert [p.setting for p in frontier(points)] == ["0", "2", "4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give models"),
        (["runs/none", "--steps", "0"], "must be at least 1"),
        (["runs/none", "--judge", "clip=toyfaces/clip"], "would judge the samples that it chose"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scaling", *arguments, "--inference", "--out", str(tmp_path / "out")]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
