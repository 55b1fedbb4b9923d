"""Embedding of conditions, condition dropout and cross-attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from genmodels import sampling
from genmodels.conditions import Condition, ConditionConfig, Text, TextConfig, condition_of
from genmodels.gan import GAN
from genmodels.gan_config import GANConfig
from genmodels.nn.conditioning import Conditioner, Embedded, drop_condition
from genmodels.nn.cross_attention import CrossAttentionStack
from genmodels.nn.transformer import TransformerConfig
from genmodels.types import Batch, Noise

CPU = torch.device("cpu")
THREE = ConditionConfig(("A", "B", "C"), classes=4)
WORDS = ConditionConfig(text=TextConfig(vocabulary=10, length=5))
IDS = torch.tensor([[1, 2, 3], [4, 5, 9], [6, 6, 6]])
MASK = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])


def test_the_vector_is_the_signed_sum_of_what_is_known() -> None:
    embedding = Conditioner(THREE, 8)
    attributes = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
    pooled = embedding(Condition(attributes, torch.tensor([2, -1])), 2, CPU).pooled
    weight, labels = embedding.attributes.weight, embedding.labels.weight
    torch.testing.assert_close(pooled[0], weight[:, 0] - weight[:, 1] + labels[2])
    assert not pooled[1].any()
    assert not embedding.nothing(2, CPU).pooled.any()
    assert Conditioner(ConditionConfig(), 8).nothing(3, CPU).pooled.shape == (3, 8)


def test_weights_keep_their_names_and_initial_values() -> None:
    """Attributes first, then labels, all from N(0, 0.02^2), as saved models and seeds expect."""
    torch.manual_seed(0)
    state = Conditioner(THREE, 8).state_dict()
    assert list(state) == ["attributes.weight", "labels.weight"]
    torch.manual_seed(0)
    torch.nn.Linear(3, 8, bias=False), torch.nn.Embedding(4, 8)  # what their constructors draw
    torch.testing.assert_close(state["attributes.weight"], torch.empty(8, 3).normal_(std=0.02), rtol=0, atol=0)
    torch.testing.assert_close(state["labels.weight"], torch.empty(4, 8).normal_(std=0.02), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (Condition(torch.ones(2, 4)), r"attributes of shape \(2, 4\), and this model takes \(2, 3\)"),
        (Condition(labels=torch.tensor([0.0, 1.0])), "labels of type torch.float32, and labels are integers"),
        (Condition(labels=torch.tensor([0, 4])), "label 4 is not one of the 4 classes"),
        (Condition(text=Text(IDS[:2], MASK[:2])), "this model was built without text"),
    ],
)
def test_other_conditions_are_refused(condition: Condition, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Conditioner(THREE, 8)(condition, 2, CPU)
    with pytest.raises(ValueError, match=r"takes \(2, 0\)|without classes|without text"):
        Conditioner(ConditionConfig(), 8)(condition, 2, CPU)


def test_a_dict_may_hold_scalars_of_numpy_and_torch() -> None:
    given = {"A": np.False_, "B": np.int8(1), "C": torch.tensor(-1), "label": np.int64(3)}
    condition = THREE.condition(given, 2)
    assert condition.attributes is not None and condition.attributes.tolist() == [[-1, 1, -1]] * 2
    assert condition.labels is not None and condition.labels.tolist() == [3, 3]
    assert THREE.condition(condition, 2) is condition
    assert THREE.condition(None, 2).is_empty
    with pytest.raises(ValueError, match="label True: this model does not know it"):
        THREE.condition({"label": True}, 2)


def test_one_label_is_not_that_of_all() -> None:
    with pytest.raises(ValueError, match=r"labels of shape \(1,\), not \(5,\)"):
        Conditioner(ConditionConfig(classes=4), 8)(Condition(labels=torch.tensor([2])), 5, CPU)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(drop=1.5), r"drop and drop_each must be in \[0, 1\], got 1.5 and 0.5"),
        (dict(drop_each=-0.1), r"drop and drop_each must be in \[0, 1\], got 0.1 and -0.1"),
        (dict(attributes=("A", "A")), "each attribute can be named once, got A, A"),
        (dict(classes=-1), "must not be negative"),
        (dict(text=TextConfig(vocabulary=3, length=0)), "text.length must be at least 1"),
    ],
)
def test_configs_that_cannot_work(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConditionConfig(**config)


# ---- text ----


def test_tokens_are_word_plus_position_and_the_vector_is_their_mean() -> None:
    embedding = Conditioner(WORDS, 8)
    embedded = embedding(Condition(text=Text(IDS, MASK)), 3, CPU)
    words, positions = embedding.text.ids.weight, embedding.text.positions.weight
    first = words[[1, 2, 3]] + positions[:3]
    torch.testing.assert_close(embedded.tokens[0], first)
    torch.testing.assert_close(embedded.pooled[0], first.mean(0))
    torch.testing.assert_close(embedded.pooled[1], words[4] + positions[0])
    assert torch.equal(embedded.mask, MASK | torch.tensor([[False] * 3, [False] * 3, [True, False, False]]))
    torch.testing.assert_close(embedded.tokens[2, 0], embedding.text.null)
    torch.testing.assert_close(embedded.pooled[2], embedding.text.null)


def test_a_hidden_text_is_the_null_condition() -> None:
    embedding = Conditioner(WORDS, 8)
    null = embedding.nothing(2, CPU)
    hidden = embedding(Condition(text=Text(IDS[:2], torch.zeros_like(MASK[:2]))), 2, CPU)
    assert null.mask.any(1).all()
    for one, other in ((null, hidden), (null, embedding(Condition(), 2, CPU))):
        assert torch.equal(one.pooled, other.pooled)
        assert torch.equal(one.tokens[one.mask], other.tokens[other.mask])


def test_padding_may_hold_any_id() -> None:
    embedding = Conditioner(WORDS, 8)
    one = embedding(Condition(text=Text(IDS, MASK)), 3, CPU)
    other = embedding(Condition(text=Text(IDS.where(MASK, 999), MASK)), 3, CPU)
    assert torch.equal(one.pooled, other.pooled) and torch.equal(one.tokens[one.mask], other.tokens[one.mask])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (Text(IDS[:2], MASK[:2]), r"ids and mask of shape \(3, L\), got \(2, 3\) and \(2, 3\)"),
        (Text(IDS, MASK[:, :2]), r"got \(3, 3\) and \(3, 2\)"),
        (Text(IDS[:, 0], MASK[:, 0]), r"got \(3,\) and \(3,\)"),
        (Text(IDS.float(), MASK), "integer ids and a bool mask, got torch.float32"),
        (Text(IDS, MASK.long()), "bool mask, got torch.int64 and torch.int64"),
        (Text(IDS.repeat(1, 2), MASK.repeat(1, 2)), "the text has 6 tokens, and this model takes 1 to 5"),
        (Text(IDS[:, :0], MASK[:, :0]), "the text has 0 tokens, and this model takes 1 to 5"),
        (Text(IDS + 7, MASK), "token 11 is outside the vocabulary of 10"),
        (Text(IDS - 2, MASK), "token -1 is outside the vocabulary of 10"),
    ],
)
def test_texts_that_do_not_fit_are_refused(text: Text, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Conditioner(WORDS, 8)(Condition(text=text), 3, CPU)
    assert "\n" not in str(error.value)


def test_rows_are_selected_and_joined() -> None:
    embedded = Conditioner(WORDS, 8)(Condition(text=Text(IDS, MASK)), 3, CPU)
    part = embedded[1:]
    assert torch.equal(part.pooled, embedded.pooled[1:]) and torch.equal(part.mask, embedded.mask[1:])
    short = Embedded(torch.ones(1, 8), torch.ones(1, 2, 8), torch.ones(1, 2, dtype=torch.bool))
    for whole, rows in ((embedded.join(short), slice(3, 4)), (short.join(embedded), slice(0, 1))):
        assert whole.pooled.shape == (4, 8) and whole.tokens.shape == (4, 3, 8)
        assert whole.mask[rows].tolist() == [[True, True, False]]
        assert torch.equal(whole.tokens[rows][whole.mask[rows]], torch.ones(2, 8))
    moved = embedded + torch.ones(3, 8)
    assert torch.equal(moved.pooled, embedded.pooled + 1) and torch.equal(moved.tokens, embedded.tokens)


# ---- dropout ----


def test_the_stated_fractions_are_dropped() -> None:
    n = 4000
    text = Text(torch.ones(n, 2, dtype=torch.int64), torch.tensor([[True, False]]).expand(n, -1))
    full = Condition(torch.ones(n, 4), torch.arange(n) % 7, text)
    config = ConditionConfig(drop=0.2, drop_each=0.5)
    dropped = drop_condition(full, Noise.for_images(0, range(n)), config)
    kept = dropped.attributes.sum(1)
    gone = dropped.labels < 0
    assert gone.float().mean().item() == pytest.approx(0.2, abs=0.02)
    assert not kept[gone].any() and torch.equal(dropped.labels[~gone], full.labels[~gone])
    assert not dropped.text.mask[gone].any() and torch.equal(dropped.text.mask[~gone], text.mask[~gone])
    # Half of the others are whole. Of the rest, 1/16 is whole and 1/16 is empty, by four coins.
    assert (kept[~gone] == 4).float().mean().item() == pytest.approx(0.5 + 0.5 / 16, abs=0.03)
    assert (kept[~gone] == 0).float().mean().item() == pytest.approx(0.5 / 16, abs=0.015)


def test_nothing_dropped_and_everything_dropped() -> None:
    full = Condition(torch.ones(3, 2), torch.arange(3), Text(IDS, torch.ones_like(MASK)))
    same = drop_condition(full, Noise.for_images(0, range(3)), ConditionConfig(drop=0.0, drop_each=0.0))
    assert torch.equal(same.attributes, full.attributes) and torch.equal(same.labels, full.labels)
    assert torch.equal(same.text.mask, full.text.mask)
    nothing = drop_condition(full, Noise.for_images(0, range(3)), ConditionConfig(drop=1.0, drop_each=0.0))
    assert not nothing.attributes.any() and (nothing.labels == -1).all() and not nothing.text.mask.any()


def test_text_does_not_change_what_is_drawn() -> None:
    config = ConditionConfig(drop=0.4)
    with_text = Condition(torch.ones(3, 2), torch.arange(3), Text(IDS, MASK))
    noises = [Noise.for_images(5, range(3)) for _ in range(2)]
    one = drop_condition(with_text, noises[0], config)
    other = drop_condition(Condition(with_text.attributes, with_text.labels), noises[1], config)
    assert torch.equal(one.attributes, other.attributes) and torch.equal(one.labels, other.labels)
    assert torch.equal(noises[0].uniform(), noises[1].uniform())


# ---- cross-attention ----


def stack(**settings: Any) -> CrossAttentionStack:
    torch.manual_seed(0)
    return CrossAttentionStack(TransformerConfig(**(dict(width=16, depth=2, heads=4) | settings)))


def tokens(n: int, length: int, seed: int) -> Tensor:
    return torch.randn(n, length, 16, generator=torch.Generator().manual_seed(seed))


def test_cross_attention_is_softmax_of_the_scores_over_real_tokens() -> None:
    layers = stack(bias=True)
    x, condition = tokens(3, 4, 1), Embedded(torch.zeros(3, 16), tokens(3, 3, 2), MASK | (~MASK.any(1, True)))
    for function in layers(condition):
        assert torch.equal(function(x), x), "it starts as the identity"
    layer = layers.layers[1]
    for parameter in layers.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    q = layer.q(layer.norm(x)).unflatten(2, (4, 4))  # (N, T, H, d)
    k, v = layers.keys_values[1](layers.norm(condition.tokens)).unflatten(2, (2, 4, 4)).unbind(2)
    scores = torch.einsum("nthd,nlhd->nhtl", q, k) / 2
    weights = scores.masked_fill(~condition.mask[:, None, None], -torch.inf).softmax(-1)
    expected = x + layer.out(torch.einsum("nhtl,nlhd->nthd", weights, v).flatten(2))
    torch.testing.assert_close(layers(condition)[1](x), expected)
    assert (expected - x).abs().max() > 0.1


@pytest.mark.parametrize("value", [{"Smiling": 1}, torch.ones(2, 1), "Smiling"])
def test_what_is_no_condition_is_refused_with_what_to_do(value: Any) -> None:
    model = GAN(GANConfig(size=32, condition=ConditionConfig(("Smiling",))))
    noise, images = Noise.for_images(0, range(2)), torch.zeros(2, 3, 32, 32)
    calls = [lambda: Batch(images, noise, value), lambda: model.sample(noise, value, model.options())]
    if not isinstance(value, dict):
        calls += [lambda: model.generate(2, condition=value), lambda: sampling.sample(model, 2, 0, value)]
    for call in calls:
        with pytest.raises(TypeError, match=rf"got {type(value).__name__}: condition_of\(.* from a dict"):
            call()
    noise = Noise.for_images(0, range(2))
    made = condition_of(model, {"Smiling": 1}, 2)
    assert torch.equal(model.eval().sample(noise, made, model.options()), model.generate(2, condition={"Smiling": 1}))


@pytest.mark.parametrize("value", [torch.zeros(2, 3, 32, 32), [1, 2]])
def test_a_model_called_with_images_says_what_to_call(value: Any) -> None:
    model = GAN(GANConfig(size=32))
    with pytest.raises(TypeError, match=rf"got {type(value).__name__}: call model\(Batch\(.* model.generate\(n\)"):
        model(value)


def test_a_class_is_known_by_its_name_or_its_number() -> None:
    zoo = ConditionConfig(classes=3, class_names=("cat", "sea lion", "1"))
    for label, number in (("sea lion", 1), ("Sea Lion", 1), (1, 1), ("0", 0), ("1", 2), (np.int64(2), 2)):
        assert torch.equal(zoo.condition({"label": label}, 2).labels, torch.tensor([number, number]))
    for label, message in (
        ("seal", "label 'seal': this model does not know it; its classes are cat, sea lion, 1"),
        (3, "label 3: this model does not know it"),
        (-1, "label -1: this model does not know it"),
        (True, "label True: this model does not know it"),
    ):
        with pytest.raises(ValueError, match=message):
            zoo.condition({"label": label}, 2)
    for stored, typed in (("caf\u00e9", "CAFE\u0301"), ("cafe\u0301", "caf\u00e9")):  # as macOS and others type it
        assert ConditionConfig(classes=2, class_names=("bar", stored)).class_number(typed) == 1
    many = ConditionConfig(classes=30, class_names=("sea lion", *map(str, range(29))))
    with pytest.raises(ValueError, match="it has 30 classes .* did you mean sea lion"):
        many.condition({"label": "sea lyon"}, 1)
    with pytest.raises(ValueError, match="class_names must name all 3 classes, or none, got 2"):
        ConditionConfig(classes=3, class_names=("cat", "dog"))


def test_an_interpolation_of_a_gan_has_no_guidance() -> None:
    """It has no condition either, so that guidance would change nothing."""
    model = GAN(GANConfig(size=32, condition=ConditionConfig(classes=2))).eval()
    assert sampling.interpolate(model, [1, 2], 3, truncation=0.7).shape == (1, 3, 32, 32, 3)
    with pytest.raises(ValueError, match="guidance 2 has no effect on an interpolation: leave it out"):
        sampling.interpolate(model, [1, 2], 3, guidance=2.0)
