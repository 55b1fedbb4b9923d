"""Metrics of models that embed images and sentences, against closed forms, and such models as
extractors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from oracle_clip import NAMES, Oracle, OracleConfig, quarters
from tiny_model import Tiny, TinyConfig
from torch import Tensor, nn

import genmodels
from genmodels.base import Generator
from genmodels.conditions import Condition, ConditionConfig
from genmodels.data.captions import parse
from genmodels.evaluation import clip_score as clip_scores
from genmodels.evaluation import own, retrieval
from genmodels.evaluation import zero_shot as zero_shots
from genmodels.evaluation.captions import captions_of
from genmodels.evaluation.clip_score import clip_score, shuffled
from genmodels.evaluation.columns import Column, columns
from genmodels.evaluation.context import Context, Part
from genmodels.evaluation.embedder import embed_texts, embedder
from genmodels.evaluation.evaluate import _guided_by, evaluate
from genmodels.evaluation.extractors import Extractor, load_extractor
from genmodels.evaluation.features import extract
from genmodels.evaluation.images import Images
from genmodels.evaluation.reference import reference_from
from genmodels.evaluation.retrieval import oracle, recall
from genmodels.evaluation.sections import sections
from genmodels.evaluation.zero_shot import zero_shot
from genmodels.types import Batch, Noise


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENMODELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(genmodels.FAMILIES, "oracle", "oracle_clip:Oracle")


def context(model: Any, data: Any = None, judges: tuple[Extractor, ...] = (), n: int = 300) -> Context:
    return Context(reference_from(data or quarters(), "valid"), judges, 50, model=model, n=n)


def measured(data: Any = None, **settings: Any) -> Part:
    """Scores of a model that embeds."""
    given = context(Oracle(OracleConfig(**settings)), data)
    parts = [part(given) for part in (zero_shots.part, retrieval.part, own.part)]
    return Part(
        {name: score for part in parts for name, score in part.scores.items()},
        {name: why for part in parts for name, why in part.absent.items()},
    )


# ---- zero-shot classification ----


def test_zero_shot_of_a_model_that_takes_one_attribute_for_its_opposite() -> None:
    scores = measured(believes=(1.0, 1.0, -1.0, 1.0)).scores
    assert scores["zero-shot"].each == {"Male": 1, "Smiling": 1, "Eyeglasses": 0, "Young": 1}
    assert scores["zero-shot-auc"].each == {"Male": 1, "Smiling": 1, "Eyeglasses": 0, "Young": 1}
    assert scores["zero-shot-probe"].each == dict.fromkeys(NAMES, 1.0)  # the embedding knows better
    assert (scores["zero-shot"].value, scores["zero-shot-probe"].value) == (0.75, 1)


def test_the_prompts_are_part_of_the_protocol() -> None:
    scores = measured().scores
    protocol = scores["zero-shot"].protocol
    yes, no = zero_shots.prompts("Eyeglasses")
    assert f"Eyeglasses: {yes[0]} / {no[0]}" in protocol.text and set(protocol.attributes.split(", ")) == set(NAMES)
    assert (protocol.split, protocol.n) == ("valid", 300)
    assert scores["zero-shot-auc"].protocol == protocol
    probe = scores["zero-shot-probe"].protocol
    assert probe.text is None and probe.train.endswith("(600)")


def test_zero_shot_accuracy_is_balanced_and_auc_does_not_depend_on_a_threshold() -> None:
    features = np.array([[0.9], [0.8], [0.7], [0.6], [0.1]], np.float32)
    truth = np.array([1, 1, -1, 1, 0], np.int8)
    result = zero_shot(features, truth, np.array([1.0]), np.array([0.0]))  # it takes all for yes
    assert result.accuracy == 0.5
    assert result.auc == pytest.approx(2 / 3)  # 0.9 and 0.8 are above 0.7, 0.6 is not; the unknown one does not count


def test_attributes_that_are_too_rare_are_left_out_and_none_is_a_reason() -> None:
    data = quarters()
    few = data.attributes.copy()
    few[600:, 1] = -1
    few[600:619, 1] = 1
    assert set(measured(replace(data, attributes=few)).scores["zero-shot"].each) == {*NAMES} - {"Smiling"}
    other = replace(data, attribute_names=("Big_Nose_", "b", "c", "d"))
    absent = measured(other).absent
    assert "no attribute with prompts is known for 20 held-out images" in absent["zero-shot"]
    (why,) = [why for names, why in absent.items() if names.startswith("recall@1-text-to-image, ")]
    assert why == absent["metrics of oracle"] and why.startswith("the images have no captions, and no attributes")


# ---- retrieval ----


def test_recall_against_a_search_by_hand_and_in_random_order_among_equals() -> None:
    rng = np.random.default_rng(0)
    similarity = rng.normal(size=(40, 40))
    for k in (1, 5, 10):
        expected = np.mean([i in np.argsort(-row)[:k] for i, row in enumerate(similarity)])
        assert recall(similarity, k) == pytest.approx(expected)
    assert recall(np.zeros((40, 40)), 5) == pytest.approx(5 / 40)
    assert recall(np.zeros((3, 3)), 5) == 1


def test_the_oracle_is_the_highest_recall_that_can_be_expected() -> None:
    fits = np.array([[1, 1, 1], [0, 1, 0], [1, 1, 1]], bool)
    best = oracle(fits)
    assert recall(best, 1) == pytest.approx((1 / 3 + 1 + 1 / 3) / 3)
    # Image 1 fits all captions, and caption 1 fits no other image.
    assert recall(best.T, 1) == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)
    assert recall(fits.T, 1) < recall(best.T, 1)


def test_retrieval_of_a_model_that_knows_all_attributes_reaches_the_oracle() -> None:
    scores = measured().scores
    for k in (1, 5, 10):
        score = scores[f"recall@{k}-text-to-image"]
        assert score.value == pytest.approx(score.floor, abs=0.05) and 0 < score.value < 1
        assert score.error == pytest.approx((score.value * (1 - score.value) / 300) ** 0.5)
        assert scores[f"recall@{k}-image-to-text"].value <= scores[f"recall@{k}-image-to-text"].floor + 0.05
    protocol = scores["recall@1-text-to-image"].protocol
    assert protocol.n == 300 and protocol.text.startswith("generated, long, test split, seed 0, ")
    wrong = measured(believes=(-1.0, -1.0, -1.0, -1.0)).scores["recall@10-text-to-image"]
    assert wrong.value < 0.01 and wrong.floor == scores["recall@10-text-to-image"].floor


def test_stored_captions_are_used_and_equal_ones_fit_each_others_images() -> None:
    data = quarters()
    words = {1: "a smiling face", -1: "a face that is not smiling"}
    text = [(words[row[1]], "another") for row in data.attributes.tolist()]
    score = measured(replace(data, text=text)).scores["recall@10-text-to-image"]
    assert score.protocol.text.startswith("first stored caption of each image, ")
    share = (data.attributes[600:, 1] == 1).mean()
    assert score.floor == pytest.approx(share * 10 / (300 * share) + (1 - share) * 10 / (300 * (1 - share)))
    with pytest.raises(ValueError, match="2 of 3 images have no caption"):
        captions_of(None, (), [("a", "b"), (), (" ",)])


def test_which_captions_fit_is_known_from_parsing() -> None:
    attributes = np.random.default_rng(0).choice(np.array([-1, 0, 1], np.int8), (60, 4))
    captioned = captions_of(attributes, NAMES)
    facts = [parse(text) for text in captioned.texts]
    expected = [
        [all(row[NAMES.index(name)] != -value for name, value in stated.items()) for row in attributes.tolist()]
        for stated in facts
    ]
    fits = captioned.fits()
    assert np.array_equal(fits, expected) and fits.diagonal().all() and not fits.all()
    assert captions_of(attributes, NAMES).origin == captioned.origin


def test_evaluate_measures_all_of_it_and_the_models_own_loss_on_captions() -> None:
    result = evaluate(Oracle(OracleConfig()), quarters(), batch_size=50)
    scores = result.scores
    assert scores["zero-shot"].value == 1 and scores["recall@10-image-to-text"].value > 0.2
    assert scores["train-flops"].value > 0
    page = {section.heading: section for section in sections([result], columns([result]), "")}
    table = page["Attributes"].table
    assert table[0] == ["attribute", "zero-shot", "zero-shot AUC", "zero-shot probe"]
    assert sorted(table[1:]) == [[name, "1", "1", "1"] for name in sorted(NAMES)]
    assert "an oracle" in page["Results"].text[-1]
    score = scores["loss_over_ln_batch"]
    assert 0 < score.value < 1 and "test split" in score.protocol.text and "batches of 50" in score.protocol.text


# ---- a model as an extractor ----


def test_a_saved_model_is_an_extractor_named_by_its_weights(tmp_path: Path) -> None:
    Oracle(OracleConfig()).save_pretrained(tmp_path / "run")
    extractor = load_extractor(f"clip={tmp_path / 'run'}")
    assert extractor.name == f"clip:{extractor.weights[:8]}" and len(extractor.weights) == 16
    assert extractor.measure("fd") == f"fd-{extractor.name}"
    images = Images(quarters(20).images, "few")
    features = extract(images, extractor)
    levels = images.pixels[:, ::8, ::8, 0].reshape(20, 4) / 127.5 - 1
    np.testing.assert_allclose(features, levels / np.linalg.norm(levels, axis=1, keepdims=True), atol=1e-5)
    larger = Images(images.pixels.repeat(2, 1).repeat(2, 2), "larger")
    np.testing.assert_allclose(extract(larger, extractor), features, atol=0.02)
    other = Oracle(OracleConfig(believes=(1.0, 1.0, 1.0, 0.5)))
    assert embedder(other).weights != extractor.weights and embedder(other).name.startswith("oracle:")
    rows = embed_texts(["a smiling man"] * 300, extractor)
    assert rows.shape == (300, 4) and np.allclose((rows**2).sum(1), 1)


def test_a_model_that_embeds_no_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(genmodels.FAMILIES, "tiny", "tiny_model:Tiny")
    Tiny(TinyConfig()).save_pretrained(tmp_path / "tiny")
    with pytest.raises(ValueError, match="tiny models do not embed images and sentences"):
        load_extractor(f"clip={tmp_path / 'tiny'}")


# ---- CLIP-score ----


@dataclass(frozen=True)
class PainterConfig:
    size: int = 16
    obeys: bool = True
    condition: ConditionConfig = ConditionConfig(attributes=NAMES[:3])
    guide: str = ""


@dataclass(frozen=True)
class NoOptions:
    pass


class Painter(Generator):
    """Generator of images as in `quarters`, which have the requested attributes, or the opposite."""

    family = "painter"
    Config: ClassVar[type] = PainterConfig
    Options: ClassVar[type] = NoOptions

    def __init__(self, config: PainterConfig):
        super().__init__(config)
        self.level = nn.Parameter(torch.tensor(0.6))

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        return self.level, {}

    def sample(self, noise: Noise, condition: Condition, options: Any) -> Tensor:
        values = noise.normal(4).sign()
        if condition.attributes is not None:
            values[:, :3] = condition.attributes if self.config.obeys else -condition.attributes
        grid = (self.level * values + 0.2 * noise.uniform(4)).reshape(-1, 1, 2, 2)
        return grid.repeat_interleave(8, 2).repeat_interleave(8, 3).repeat(1, 3, 1, 1)


def scored(judge: Extractor, **settings: Any) -> Part:
    return clip_scores.part(context(Painter(PainterConfig(**settings)), judges=(judge,), n=200))


def test_clip_score_of_samples_that_have_and_have_not_what_was_requested() -> None:
    judge = embedder(Oracle(OracleConfig()), "clip")
    good, bad = scored(judge), scored(judge, obeys=False)
    name, other = f"clip-score-{judge.name}", f"clip-score-shuffled-{judge.name}"
    score = good.scores[name]
    assert score.value == pytest.approx(score.floor, rel=0.1) and score.value > 60
    assert bad.scores[name].value < 5 and bad.scores[name].floor == score.floor
    # Captions of other images: a random one is contradicted as often as not.
    assert good.scores[other].floor < 0.6 * score.floor and good.scores[other].value < 0.6 * score.value
    assert score.protocol.weights == judge.weights and score.protocol.n == 200
    assert "generated, long, test split" in score.protocol.text
    assert [Column(key, (found,)).title for key, found in good.scores.items()] == [
        f"CLIP-score ({judge.name})", f"CLIP-score, shuffled ({judge.name})",
    ]  # fmt: skip


def test_clip_score_by_hand_and_no_caption_keeps_its_place_when_shuffled() -> None:
    images = np.array([[1.0, 0.0], [0.0, 1.0]])
    texts = np.array([[0.6, 0.8], [0.6, -0.8]])
    value, error = clip_score(images, texts)
    assert value == pytest.approx(30) and error == pytest.approx(30)  # 60 and max(-80, 0)
    rows = np.arange(50.0)[:, None]
    assert (shuffled(rows) != rows).all() and sorted(shuffled(rows)[:, 0]) == rows[:, 0].tolist()


def test_why_there_is_no_clip_score() -> None:
    judge = embedder(Oracle(OracleConfig()), "clip")
    name = f"clip-score-{judge.name}"
    assert scored(judge, condition=ConditionConfig()).absent[name] == "painter takes neither text nor attributes"
    assert scored(judge, condition=ConditionConfig(attributes=("Smiling", "Bald"))).absent[name] == (
        "quarters, valid does not know Bald"
    )
    assert not any("clip-score" in key for key in scored(Extractor("plain", judge.network)).absent)


def test_an_extractor_that_guided_the_model_is_reported() -> None:
    judge = embedder(Oracle(OracleConfig()), "clip")
    assert not [*_guided_by(PainterConfig(), [judge])]
    (note,) = _guided_by(PainterConfig(guide=judge.weights), [judge])
    assert note.startswith(f"{judge.name} also trained, guided or conditioned the model")
