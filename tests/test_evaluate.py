"""evaluate(): scores, floors, the protocol, and input refused."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import Asked, AskedConfig, OnlySamples, Tiny, TinyConfig

from genmodels import sampling
from genmodels.autoregressive import Autoregressive, AutoregressiveConfig
from genmodels.base import Model
from genmodels.data.packed import Packed
from genmodels.data.rows import spread_rows
from genmodels.evaluation import evaluate as evaluation
from genmodels.evaluation import likelihood
from genmodels.evaluation.columns import columns, reason
from genmodels.evaluation.context import Context, Part
from genmodels.evaluation.distances import frechet_distance
from genmodels.evaluation.evaluate import PARTS, Row, evaluate, evaluate_images
from genmodels.evaluation.extractors import Extractor
from genmodels.evaluation.images import Images
from genmodels.evaluation.neighbours import Realism
from genmodels.evaluation.realism import most_realistic
from genmodels.evaluation.reference import floor_pair, reference_from, reference_from_images
from genmodels.evaluation.results import Score, comparable
from genmodels.latent import Latent
from genmodels.nn.transformer import TransformerConfig
from genmodels.pictures import to_uint8
from genmodels.types import Batch, Noise
from genmodels.vqvae import VQVAE, VQVAEConfig

TRAIN, VALID, SIZE = 600, 300, 16


def colours(images: torch.Tensor) -> torch.Tensor:
    """Mean colour of the quarters: (N, 3, 16, 16) -> (N, 12)."""
    return torch.nn.functional.avg_pool2d(images.float(), 8).flatten(1)


EXTRACTOR = Extractor("colours", colours)


def faces(seed: int = 0) -> Packed:
    rng = np.random.default_rng(seed)
    attributes = rng.choice(np.array([-1, 1], np.int8), (TRAIN + VALID, 2))
    coarse = rng.normal(128, 30, (TRAIN + VALID, 2, 2, 3)) + 40 * attributes.sum(1)[:, None, None, None]
    coarse[..., 0] += 30 * attributes[:, :1, None]
    return Packed(
        images=np.clip(coarse, 0, 255).astype(np.uint8).repeat(8, 1).repeat(8, 2),
        attributes=attributes,
        attribute_names=("Smiling", "Eyeglasses"),
        names=[f"{i}" for i in range(TRAIN + VALID)],
        splits=(np.arange(TRAIN + VALID) >= TRAIN).astype(np.uint8),
        manifest={"source": "colours", "crop": "none", "filter": "box"},
    )


def test_a_model_is_scored_by_all_it_can_do() -> None:
    model = Tiny(TinyConfig())
    data = faces()
    reference = reference_from(data, "valid")
    found = evaluate(model, reference, [EXTRACTOR], n=256, seed=5, options={"temperature": 0.5})
    names = {"fd", "kd", "precision", "recall", "density", "coverage", "diversity", "nearest-train", "copies", "rfd"}
    assert {f"{name}-colours" for name in names} <= set(found.scores)
    assert {"psnr", "ssim", "bits-per-dim", "parameters", "sample-flops", "images-per-second"} <= set(found.scores)

    # The same scores, computed step by step.
    samples = sampling.sample(model, 256, 5, temperature=0.5, progress=False)

    def features(pixels: np.ndarray) -> np.ndarray:
        return colours(torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2)).numpy()

    score = found.scores["fd-colours"]
    real = features(data.images[TRAIN:])
    assert score.value == pytest.approx(frechet_distance(features(samples), real), rel=1e-9)
    others = data.images[:TRAIN][spread_rows(TRAIN, 256)]
    assert score.floor == pytest.approx(frechet_distance(features(others), real), rel=1e-9)
    protocol = score.protocol
    assert (protocol.n, protocol.n_reference, protocol.size, protocol.crop) == (256, VALID, SIZE, "none")
    assert (protocol.extractor, protocol.split, protocol.filter, protocol.small) == ("colours", "valid", "box", True)
    assert found.subject.seed == 5 and found.subject.options["temperature"] == 0.5
    assert np.array_equal(found.pictures["samples"], samples[:64])
    originals = data.images[TRAIN:][spread_rows(VALID, 256)][:16]
    assert np.array_equal(found.pictures["reconstructions"], sampling.reconstruct(model, originals))
    assert len(found.pictures["nearest samples"]) == len(found.pictures["nearest train"]) == 16


def test_realism_of_single_samples() -> None:
    data = faces()
    reference = reference_from(data, "valid")
    broken = faces(7).images[:300].copy()
    broken[:20, :8] = 255 - broken[:20, :8]
    found = evaluate_images(Images(broken, "broken"), reference, [EXTRACTOR])
    realism = Realism(colours(torch.from_numpy(np.array(reference.images.pixels)).permute(0, 3, 1, 2)).numpy())
    scores = realism(colours(torch.from_numpy(broken).permute(0, 3, 1, 2)).numpy())
    score, outliers = found.scores["realism-colours"], found.scores["outliers-colours"]
    assert score.value == pytest.approx(np.median(scores)) and "k = 3" in score.how
    assert score.floor == pytest.approx(score.value, rel=0.1)
    assert outliers.floor == 0.05 and 20 / 300 < outliers.value < 0.2
    order = np.argsort(scores, kind="stable")
    assert np.array_equal(found.pictures["least realistic"], broken[order[:16]]) and (order[:16] < 20).mean() > 0.6
    assert np.array_equal(found.pictures["most realistic"], broken[order[::-1][:16]])


def test_the_best_of_several_candidates_is_recorded_with_its_cost() -> None:
    model, data = Tiny(TinyConfig()), faces()
    reference = reference_from(data, "valid")
    plain, best = (evaluate(model, data, [EXTRACTOR], n=256, best_of=n) for n in (1, 3))
    assert plain.subject.choice == ""
    assert best.subject.choice == f"best of 3 by realism (colours, compared with {TRAIN} images of colours, train)"
    chosen = most_realistic(3, reference.train, EXTRACTOR)
    assert np.array_equal(best.pictures["samples"][:9], sampling.sample(model, 9, best=chosen, progress=False))
    for name in ("network-evaluations", "sample-flops"):
        assert best.scores[name].value == pytest.approx(3 * plain.scores[name].value)
        assert best.subject.choice in best.scores[name].how
    assert best.scores["realism-colours"].value > plain.scores["realism-colours"].value
    for split, message in (("valid", "at least 1, got 0"), ("train", "choose the split valid")):
        with pytest.raises(ValueError, match=message):
            evaluate(model, reference_from(data, split), [EXTRACTOR], n=256, best_of=0)


def test_codes_have_bits_per_token_and_few_shades_a_number_of_their_own() -> None:
    small = TransformerConfig(width=16, depth=1, heads=2)
    networks = dict(
        size=SIZE, patch=4, channels=(16,), encoder_blocks=(1,), decoder_blocks=(1,), codebook_size=8, code_dim=2
    )
    codec = VQVAE(VQVAEConfig(**networks))
    config = AutoregressiveConfig(size=SIZE, codes=codec.latent_shape, codebook_size=8, transformer=small)
    model = Latent.over(codec, Autoregressive(config))
    torch.nn.init.normal_(model.prior.decoder.head.weight, std=0.3)
    reference = reference_from(faces(), "valid")
    found = evaluate(model, reference, [EXTRACTOR], n=256)
    images = torch.from_numpy(reference.images.pixels[spread_rows(VALID, 256)]).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.inference_mode():
        expected = model.prior.bits_per_token(model.encode(images)).mean().item()
    score = found.scores["bits-per-token"]
    assert score.value == pytest.approx(expected, rel=1e-4)
    assert score.protocol.alphabet == model.config.codec_weights and score.unit == "bits/token"
    assert "codes that have a likelihood" in found.absent["bits-per-dim"]
    assert "psnr" in found.scores and found.scores["network-evaluations"].value == 16

    plain = Autoregressive(AutoregressiveConfig(size=SIZE, levels=4, transformer=small))
    measured = likelihood.part(Context(reference, [EXTRACTOR], 64, model=plain.eval(), n=256))  # it samples slowly
    assert set(measured.scores) == {"bits-per-dim-of-4-levels"}
    score = measured.scores["bits-per-dim-of-4-levels"]
    assert score.value == pytest.approx(2, abs=1e-4) and "rounded to 4 levels" in score.how


def test_what_a_model_cannot_do_is_absent_with_the_reason() -> None:
    found = evaluate(OnlySamples(TinyConfig()), reference_from(faces(), "valid"), [EXTRACTOR], n=256)
    assert "does not reconstruct" in found.absent["psnr"]
    assert "no likelihood" in found.absent["bits-per-dim"]
    assert "takes neither text nor attributes" in found.absent["attributes-colours"]
    assert not {"psnr", "bits-per-dim"} & set(found.scores)


def test_conditional_samples_are_held_against_what_they_were_asked() -> None:
    model = Asked(AskedConfig())
    with torch.no_grad():  # the first two latents are the attributes, and determine the colours
        model.decoder.weight.zero_()
        model.decoder.weight[:4, 0] = 0.1
        model.decoder.weight[:, 1] += 0.05
        model.decoder.bias.zero_()
    found = evaluate(model, reference_from(faces(), "valid"), [EXTRACTOR], n=256)
    score = found.scores["attributes-colours"]
    assert score.value > 0.85 and score.floor is not None and score.floor > 0.85
    assert list(score.each) == list(score.each_floor) == ["Smiling", "Eyeglasses"]
    assert score.value == np.mean(list(score.each.values()))


def test_images_of_the_same_kind_reach_the_floor_and_copies_are_found() -> None:
    data = faces()
    reference = reference_from(data, "valid")
    fresh = evaluate_images(Images(faces(1).images[:300], "fresh"), reference, [EXTRACTOR])
    copied = evaluate_images(Images(data.images[:300], "copied"), reference, [EXTRACTOR])
    score = fresh.scores["fd-colours"]
    assert score.floor is not None and score.value < 2 * score.floor
    assert fresh.scores["nearest-train-colours"].value == pytest.approx(1, abs=0.15)
    assert copied.scores["nearest-train-colours"].value == 0
    assert copied.scores["copies-colours"].value == 1
    assert np.array_equal(copied.pictures["nearest samples"], copied.pictures["nearest train"])
    assert copied.subject.kind == "images"


def test_two_small_sets_of_images_have_no_floor_and_say_why() -> None:
    one, other = Images(faces(1).images[:256], "one"), Images(faces(2).images[:500], "other")
    found = evaluate_images(one, reference_from_images(other), [EXTRACTOR])
    assert found.scores["fd-colours"].floor is None
    assert "not 256 further real images" in found.absent["real images, same n"]
    assert found.scores["fd-colours"].protocol.reference == other.fingerprint


def test_no_more_images_than_features_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    wide = Extractor("wide", lambda images: images.float().flatten(1)[:, :300])
    reference = reference_from_images(Images(faces(2).images[:500], "other"))
    found = evaluate_images(Images(faces(1).images[:300], "few"), reference, [wide])
    reason = "the covariance of 300 images is singular in 300 features"
    assert found.scores["fd-wide"].how.endswith(f"; {reason}")
    assert f"fd-wide: {reason}, so" in capsys.readouterr().err
    enough = evaluate_images(Images(faces(1).images[:301], "enough"), reference, [wide])
    assert "singular" not in enough.scores["fd-wide"].how + capsys.readouterr().err


def test_the_floor_needs_as_many_further_images_as_samples() -> None:
    found = evaluate(OnlySamples(TinyConfig()), reference_from(faces(), "train"), [EXTRACTOR], n=400)
    assert found.absent["real images, same n"] == "there are not 400 further real images: choose --n 300"
    assert "may be those the model was trained on" in found.absent["nearest-train-colours"]


def test_without_further_images_the_floor_is_a_part_of_the_reference_against_the_rest() -> None:
    reference = reference_from_images(Images(faces(2).images, "many"))
    found = evaluate_images(Images(faces(1).images[:300], "fresh"), reference, [EXTRACTOR])
    pair = floor_pair(reference, 300)
    assert pair is not None and [len(part) for part in pair] == [300, 600]
    real, rest = (colours(torch.from_numpy(part.pixels).permute(0, 3, 1, 2)).numpy() for part in pair)
    assert found.scores["fd-colours"].floor == pytest.approx(frechet_distance(real, rest), rel=1e-9)
    assert not {row.tobytes() for row in pair[0].pixels} & {row.tobytes() for row in pair[1].pixels}


def test_reconstructions_are_compared_with_the_images_they_are_of() -> None:
    found = evaluate(Tiny(TinyConfig()), reference_from(faces(), "valid"), [EXTRACTOR], n=256)
    for name in ("psnr", "rfd-colours", "bits-per-dim"):
        protocol = found.scores[name].protocol
        assert (protocol.n, protocol.n_reference) == (256, 256)
        assert protocol.reference != found.scores["fd-colours"].protocol.reference


def test_reconstructions_without_an_encoder_are_few_and_have_names_of_their_own() -> None:
    """Reconstructions by inversion get columns of their own in a comparison."""

    class Searched(Tiny):
        def invert(self, images: torch.Tensor) -> torch.Tensor:
            raise NotImplementedError

    data = reference_from(faces(), "valid")
    found, other = (evaluate(kind(TinyConfig()), data, [EXTRACTOR], n=300) for kind in (Searched, Tiny))
    assert {"psnr-by-inversion", "ssim-by-inversion", "rfd-by-inversion-colours"} <= set(found.scores)
    assert not {"psnr", "ssim", "rfd-colours"} & set(found.scores)
    assert (found.scores["psnr-by-inversion"].protocol.n, other.scores["psnr"].protocol.n) == (256, 300)
    shown = {column.title for column in columns(comparable([found, other]))}
    assert {"PSNR (dB)", "PSNR by inversion (dB)", "RFD (colours)", "RFD by inversion (colours)"} <= shown
    psnr = next(column for column in columns([other]) if column.name == "psnr")
    assert "no encoder" in reason(found, psnr)


def test_what_is_kept_is_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENMODELS_CACHE", str(tmp_path))
    calls = []

    def counted(images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        return colours(images)

    extractor = Extractor("counted", counted, weights="0" * 16)
    images, reference = Images(faces(1).images[:300], "fresh"), reference_from(faces(), "valid")
    first = evaluate_images(images, reference, [extractor])
    assert sum(calls) == 300 + VALID + 300 + TRAIN  # samples, reference, floor, training images
    again = evaluate_images(images, reference, [extractor])
    assert sum(calls) == 300 + VALID + 300 + TRAIN
    assert again.plain() == first.plain()
    for file in tmp_path.rglob("*.json"):
        file.write_text("{")
    assert evaluate_images(images, reference, [extractor]).plain() == first.plain()


def test_a_metric_is_one_function_and_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def brightness(context: Context) -> Part:
        assert context.samples is not None
        value = float(context.samples.pixels.mean())
        return Part({"brightness": Score(value, "neither", "mean level", context.protocol)}, {"darkness": "not dark"})

    monkeypatch.setattr(evaluation, "PARTS", [*PARTS, Row("sample", brightness)])
    model, reference = OnlySamples(TinyConfig()), reference_from(faces(), "valid")
    found = evaluate(model, reference, [EXTRACTOR], n=256, seed=3)
    score = found.scores["brightness"]
    assert score.value == sampling.sample(model, 256, 3, progress=False).mean()
    assert score.protocol == replace(reference.protocol, n=256)
    assert found.absent["darkness"] == "not dark"
    assert columns([found])[-7].name == "outliers-colours" and columns([found])[-6].name == "brightness"

    without = Row("inpaint", brightness, {"brightness": "{kind} is dull"})
    monkeypatch.setattr(evaluation, "PARTS", [*PARTS, without])
    found = evaluate(model, reference, [EXTRACTOR], n=256)
    assert "brightness" not in found.scores and found.absent["brightness"] == "only_samples is dull"

    monkeypatch.setattr(evaluation, "PARTS", [*PARTS, Row("sample", brightness), Row("sample", brightness)])
    with pytest.raises(ValueError, match="two metrics are called 'brightness'"):
        evaluate(model, reference, [EXTRACTOR], n=256)


class Judge(Model):
    """A model that makes no images, and reports how well it tells smiling faces."""

    family = "judge"
    Config = AskedConfig

    def __init__(self, config: AskedConfig):
        super().__init__(config)
        self.layer = torch.nn.Linear(3, 2)

    def loss(self, batch: Batch, turn: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return (self.layer(batch.images.mean((2, 3))) - batch.condition.attributes).square().mean(), {}

    def measure(self, batches: Iterable[Batch]) -> dict[str, float]:
        parts = list(batches)
        self.seen = torch.cat([part.images for part in parts]), torch.cat([b.condition.attributes for b in parts])
        self.labels = [part.condition.labels for part in parts]
        self.streams = torch.cat([part.noise.uniform() for part in parts])
        return {"accuracy": 0.75, "loss": torch.tensor(0.5), "perplexity": float("inf")}


def test_a_model_that_makes_no_images_reports_its_own_metrics() -> None:
    model, data = Judge(AskedConfig()), faces()
    data = replace(data, attribute_names=("Eyeglasses", "Smiling"))  # the model has them in the other order
    found = evaluate(model, data, n=100, seed=5)
    assert set(found.scores) == {"accuracy", "loss", "parameters", "train-flops"}
    assert set(found.absent) == {"psnr", "bits-per-dim", "perplexity"}
    score = found.scores["accuracy"]
    assert (score.value, score.better, score.group, found.scores["loss"].value) == (0.75, "neither", "own", 0.5)
    protocol = score.protocol
    assert (protocol.n, protocol.data, protocol.split, protocol.size) == (100, "colours", "valid", SIZE)
    rows = TRAIN + spread_rows(VALID, 100)
    images, attributes = model.seen
    assert np.array_equal(to_uint8(images), data.images[rows])
    assert np.array_equal(attributes.numpy(), data.attributes[rows][:, ::-1])
    assert set(model.labels) == {None}
    assert torch.equal(model.streams, Noise.for_images(5, range(100)).uniform())
    assert found.subject.seed is None and not found.pictures
    assert [column.name for column in columns([found])] == ["accuracy", "loss", "parameters", "train-flops"]
    with pytest.raises(ValueError, match="leave out the sampling options temperature"):
        evaluate(model, data, options={"temperature": 0.5})

    labels = np.arange(len(data), dtype=np.int32) % 3
    evaluate(model, replace(data, labels=labels, class_names=("a", "b", "c")), n=100)
    assert torch.equal(torch.cat(model.labels), torch.from_numpy(labels[rows].astype(np.int64)))

    def broken(batches: Iterable[Batch]) -> dict[str, float]:
        raise ValueError("no captions")

    model.measure = broken  # type: ignore[method-assign]
    assert evaluate(model, data, n=100).absent["metrics of judge"] == "no captions"


def test_a_data_set_is_compared_with_by_its_valid_split() -> None:
    model, data = OnlySamples(TinyConfig()), faces()
    whole, part = (evaluate(model, real, [EXTRACTOR], n=256) for real in (data, reference_from(data, "valid")))
    assert whole.scores["fd-colours"] == part.scores["fd-colours"]


def test_features_are_computed_once_for_all_metrics() -> None:
    calls = []

    def counted(images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        return colours(images)

    evaluate(Tiny(TinyConfig()), reference_from(faces(), "valid"), [Extractor("counted", counted)], n=256)
    # Samples, reference, floor, training images; then the originals and their reconstructions.
    assert sum(calls) == 256 + VALID + 256 + TRAIN + 2 * 256


def test_numbers_of_another_definition_are_computed_again_and_damaged_ones_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GENMODELS_CACHE", str(tmp_path))
    extractor = Extractor("mine", colours, weights="0" * 16)
    images, reference = Images(faces(1).images[:300], "fresh"), reference_from(faces(), "valid")
    first = evaluate_images(images, reference, [extractor])
    files = sorted(tmp_path.rglob("*.json"))
    assert len(files) == 2  # the images, and the floor
    capsys.readouterr()

    stored = json.loads(files[0].read_text())
    older = stored | {"definitions": 0}
    fewer = stored | {"scores": {"fd": 1.0}}  # written before a metric was added
    for content in (older, fewer):
        files[0].write_text(json.dumps(content))
        assert evaluate_images(images, reference, [extractor]).plain() == first.plain()
        assert capsys.readouterr().err.splitlines() == [f"recomputing {files[0]}: its definition changed"]
        assert json.loads(files[0].read_text()) == stored
    for content in ("{", "[]", json.dumps(stored | {"scores": dict.fromkeys(stored["scores"], "x")})):
        files[0].write_text(content)
        assert evaluate_images(images, reference, [extractor]).plain() == first.plain()
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{files[0]} is damaged") and line.endswith("recomputing it")
        assert json.loads(files[0].read_text()) == stored


def test_one_part_that_cannot_be_measured_does_not_take_the_others_along() -> None:
    data = faces()
    leaked = replace(data, images=np.concatenate([data.images[:TRAIN], data.images[:VALID]]))
    found = evaluate_images(Images(faces(1).images[:300], "x"), reference_from(leaked, "valid"), [EXTRACTOR])
    assert "held-out images are training images" in found.absent["copies-colours"]
    assert "fd-colours" in found.scores


@pytest.mark.parametrize(("held_out", "split"), [(0, "train"), (3, "valid")])
def test_of_few_real_images_all_is_measured_but_distances(
    held_out: int, split: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = faces().take(slice(TRAIN - 10, TRAIN + held_out))
    found = evaluate(Tiny(TinyConfig()), data, [EXTRACTOR], n=256)
    notes = "colours has no validation images: comparing with those that models were trained on\n"
    assert capsys.readouterr().err == ("" if held_out else notes)
    assert {"psnr", "ssim", "bits-per-dim", "parameters", "sample-flops"} <= set(found.scores)
    assert found.scores["psnr"].protocol.split == split
    why = {name: text for names, text in found.absent.items() for name in names.split(", ")}
    for name in ("fd", "kd", "precision", "diversity", "realism", "outliers", "rfd"):
        assert f"colours, {split}: {held_out or 10} images are too few" in why[f"{name}-colours"]
    assert ("too few" if held_out else "--split valid") in why["copies-colours"]
    assert found.pictures["samples"].shape == (64, SIZE, SIZE, 3)
    json.loads(found.to_json())


def test_bad_input_is_refused_in_one_line() -> None:
    reference = reference_from(faces(), "valid")
    pixels = faces(1).images
    same = np.repeat(pixels[:1], 300, 0)

    def broken(images: torch.Tensor) -> torch.Tensor:
        return colours(images) / 0 * 0

    cases = [
        (Images(pixels[:255], "few"), reference, EXTRACTOR, "few: 255 images are too few"),
        (Images(same, "same"), reference, EXTRACTOR, "same: all 300 images"),
        (Images(np.repeat(pixels[:300], 2, 1).repeat(2, 2), "big"), reference, EXTRACTOR, "32 px.*16 px"),
        (Images(pixels[:300], "x"), reference, Extractor("broken", broken), "broken.*not finite|finite.*broken"),
        (Images(pixels[:300], "x"), reference_from_images(Images(pixels[:9], "nine")), EXTRACTOR, "nine: 9 images"),
    ]
    for images, real, extractor, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            evaluate_images(images, real, [extractor])
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="two extractors are called 'colours'"):
        evaluate_images(Images(pixels[:300], "x"), reference, [EXTRACTOR, EXTRACTOR])
    model = OnlySamples(replace(TinyConfig(), size=32))
    with pytest.raises(ValueError, match="16 px, the model makes 32 px"):
        evaluate(model, reference, [EXTRACTOR], n=256)
