"""Preference pairs and DPO: the loss in closed form, the reference, resumed runs, files, commands and bad input."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from test_autoregressive import randomised
from test_contract import SMALL
from test_pipeline import CODEC, PRIOR, recipe_class
from test_text_condition import model_of
from test_two_commands import QUICK, train
from torch import Tensor

import genmodels
from genmodels.alignment import training
from genmodels.alignment.dpo import DPO, preference_losses
from genmodels.alignment.pairs import CHOICES, PERSON, as_input, identical, read_pairs, source_of, together
from genmodels.alignment.prefer import Request, distance, make_pairs
from genmodels.alignment.rewards import Reward, attribute_reward, check_reward, clip_reward
from genmodels.alignment.training import Parent, as_data, condition_of_pairs, reference_log_probabilities
from genmodels.autoregressive import Autoregressive, AutoregressiveConfig
from genmodels.cli import main
from genmodels.cli.evaluation import chosen_by
from genmodels.conditions import Condition, ConditionConfig
from genmodels.data.batches import BatchReader
from genmodels.diffusion.unet import UNet, UNetConfig
from genmodels.dit import Alignment, DiT, DiTConfig
from genmodels.evaluation.extractors import Extractor
from genmodels.evaluation.images import Images
from genmodels.evaluation.protocol import Protocol
from genmodels.evaluation.reference import Reference
from genmodels.hashing import weights_hash
from genmodels.latent import Latent
from genmodels.nn.transformer import TransformerConfig
from genmodels.pictures import to_uint8
from genmodels.saving import from_dict
from genmodels.training.checkpoint import training_tensors
from genmodels.training.layout import Layout
from genmodels.training.recipe import OptimConfig
from genmodels.types import Batch

SMALL_BLOCKS = TransformerConfig(width=16, depth=2, heads=2, qk_norm=True)
PIXELS = AutoregressiveConfig(
    size=4, levels=4, transformer=SMALL_BLOCKS, condition=ConditionConfig(("Smiling", "Male"), classes=3)
)
FLOW = UNetConfig(size=8, channels=(16, 16), blocks=1, attention=(False, True), head=8, groups=8)
BRIGHT = Reward(lambda images, _: images.mean((1, 2, 3)), "brightness", "0123456789abcdef")


def unet(config: UNetConfig = FLOW) -> UNet:
    torch.manual_seed(0)
    model = UNet(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def latent() -> Latent:
    torch.manual_seed(0)
    config = from_dict(Latent.Config, SMALL["latent"], "config")
    model = Latent(replace(config, codec_weights="c0dec")).eval()
    with torch.no_grad():
        for parameter in model.prior.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def pairs_of(model: Any, out: Path, n: int = 12, **request: Any) -> Path:
    make_pairs(model, Request(n, **request), BRIGHT, out)
    return out


def dpo_batch(model: Any, folder: Path, beta: float | None = None, n: int = 8) -> tuple[DPO, Batch]:
    """Return the policy before the first step, and a batch as the training loop reads it."""
    pairs = read_pairs(folder)
    policy = DPO(model, beta, prompts=pairs.prompt is not None)
    data = as_data(pairs, model, folder, Parent())
    if policy.exact:
        data = replace(data, features=reference_log_probabilities(model, pairs, folder.parent / "cache"))
    tokenize: Any = policy.tokenize if policy.can("tokenize") else None
    names = policy.conditions.attributes
    (batch,) = BatchReader(data, n, 0, flip=False, tokenize=tokenize, attributes=names).read(0, 0.0)
    return policy.train(), batch


# ---- the loss ----


def test_gradient_descent_reaches_the_optimum_of_the_tabular_case() -> None:
    """Bradley-Terry preferences of rewards r have the optimum pi_ref exp(r / beta) / Z (arXiv 2305.18290, eq. 4)."""
    torch.manual_seed(0)
    beta, count = 0.3, 5
    reward = torch.randn(count, dtype=torch.float64)
    reference = torch.randn(count, dtype=torch.float64).log_softmax(0)
    logits = reference.clone().requires_grad_()
    one, other = (~torch.eye(count, dtype=torch.bool)).nonzero().T  # every ordered pair
    preferred = (reward[one] - reward[other]).sigmoid()  # the probability that `one` is chosen
    chosen = torch.stack([one, other], 1)
    optimiser = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16)

    def closure() -> Tensor:
        optimiser.zero_grad()
        losses, _ = preference_losses(logits.log_softmax(0)[chosen], reference[chosen], beta)
        loss = (preferred * losses).sum()
        loss.backward()
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    expected = (reference + reward / beta).softmax(0)
    assert (expected - reference.exp()).abs().max() > 0.1
    torch.testing.assert_close(logits.softmax(0).detach(), expected, rtol=0, atol=1e-6)


def test_what_is_logged() -> None:
    policy, reference = torch.tensor([[-1.0, -5.0], [-3.0, -2.0]]), torch.tensor([[-2.0, -3.0], [-2.0, -3.0]])
    losses, metrics = preference_losses(policy, reference, 0.5)
    margins = [0.5 * (1 + 2), 0.5 * (-1 - 1)]
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(-margin)) for margin in margins])
    expected = {"chosen_reward": 0, "rejected_reward": -0.25, "margin": 0.25, "accuracy": 0.5, "beta": 0.5}
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(expected)


@pytest.mark.parametrize("make", [lambda: randomised(PIXELS), latent, unet], ids=["pixels", "codes", "diffusion"])
def test_before_the_first_step_the_loss_is_ln_2(make: Any, tmp_path: Path) -> None:
    policy, batch = dpo_batch(make(), pairs_of(make(), tmp_path / "pairs"))
    loss, metrics = policy(batch)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-5)
    assert abs(metrics["margin"]) < 1e-4 and abs(metrics.get("kl", torch.zeros(()))) < 1e-4
    assert ("kl" in metrics) == policy.exact
    policy.requires_grad_(True)
    policy(batch)[0].backward()
    trained = [p.grad for p in policy.parameters_for("model") if p.grad is not None]
    assert sum(float(grad.abs().sum()) for grad in trained) > 1e-3


@pytest.mark.parametrize("make", [lambda: randomised(PIXELS), unet], ids=["pixels", "diffusion"])
def test_steps_raise_the_margin_and_move_away_from_the_reference(make: Any, tmp_path: Path) -> None:
    policy, batch = dpo_batch(make(), pairs_of(make(), tmp_path / "pairs"))
    before = weights_hash(make())
    policy.requires_grad_(True)
    optimiser = torch.optim.SGD(policy.parameters_for("model"), 1e-2 if policy.exact else 1e-3)
    for _ in range(5):
        optimiser.zero_grad()
        policy(batch)[0].backward()
        optimiser.step()
    loss, metrics = policy(batch)
    assert loss < math.log(2) - 0.005 and metrics["margin"] > 0.01 and metrics["accuracy"] > 0.6
    # What the margin is measured from has not moved with the policy.
    again, _ = dpo_batch(make(), tmp_path / "pairs")
    again.load_state_dict(policy.state_dict())
    assert again(batch)[0].item() == pytest.approx(loss.item(), abs=1e-6)
    assert weights_hash(policy.policy) != before


def test_every_trained_weight_has_a_gradient_although_alignment_is_no_part_of_the_loss(tmp_path: Path) -> None:
    """Several processes wait for the gradients of all weights that are trained."""
    torch.manual_seed(0)
    model = DiT(DiTConfig(size=8, transformer=SMALL_BLOCKS, align=Alignment(features=4, after=1))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    policy, batch = dpo_batch(model, pairs_of(model, tmp_path / "pairs", options={"steps": 2}))
    policy(batch)[0].backward()
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in policy.named_parameters() if parameter.grad is not None}
    assert {name for name, _ in policy.named_parameters()} - trained == {
        f"policy.projector.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")
    }


def test_checkpoints_put_the_rows_of_divided_layers_in_order() -> None:
    """The policy has other names in the model that is trained than in its checkpoints."""
    model = randomised(PIXELS)
    complete = {name: value.clone() for name, value in model.state_dict().items()}
    name = "decoder.transformer.blocks.0.attention.qkv.weight"
    policy, order = DPO(model), torch.randperm(len(complete[name]), generator=torch.Generator().manual_seed(0))
    weight = model.get_parameter(name)
    weight.data = weight.data[order]
    saved = training_tensors(policy, policy, {}, layout=Layout(parts=2, rows={f"policy.{name}": order}))
    for tensors in (saved["model"], saved["ema"]):
        assert tensors.keys() == complete.keys()
        assert all(torch.equal(value, complete[key]) for key, value in tensors.items())


def test_a_condition_reaches_the_loss(tmp_path: Path) -> None:
    model = randomised(PIXELS)
    condition = {"Smiling": "yes", "label": 2}
    policy, batch = dpo_batch(model, pairs_of(model, tmp_path / "pairs", condition=condition))
    assert batch.condition.attributes is not None and batch.condition.attributes[0].tolist() == [1, 0]
    assert batch.condition.labels is not None and set(batch.condition.labels.tolist()) == {2}
    assert policy(batch)[0].item() == pytest.approx(math.log(2), abs=1e-5)
    assert abs(policy(replace(batch, condition=Condition()))[0].item() - math.log(2)) > 1e-3


def test_prompts_reach_the_loss(tmp_path: Path) -> None:
    model = model_of("autoregressive")
    prompts = ["a man", "a smiling woman"]
    policy, batch = dpo_batch(model, pairs_of(model, tmp_path / "pairs", prompts=prompts))
    assert batch.condition.text is not None and policy.can("tokenize")
    assert read_pairs(tmp_path / "pairs").record.prompts == tuple(prompts)
    assert policy(batch)[0].item() == pytest.approx(math.log(2), abs=1e-5)


def test_pairs_without_prompts_of_a_model_with_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genmodels.training.show.GRID", 1)
    monkeypatch.setenv("GENMODELS_CACHE", str(tmp_path / "cache"))
    model_of("autoregressive").save_pretrained(tmp_path / "parent")
    model = genmodels.load(tmp_path / "parent")
    pairs = pairs_of(model, tmp_path / "pairs")
    policy, batch = dpo_batch(model, pairs)
    assert not policy.can("tokenize") and batch.condition.text is None
    assert policy(batch)[0].item() == pytest.approx(math.log(2), abs=1e-5)
    run = training.train_dpo(dpo_recipe(tmp_path / "run", run=tmp_path / "parent", pairs=(pairs,), steps=1))
    assert genmodels.load(run).can("tokenize")


# ---- probabilities ----


def test_probabilities_are_those_of_one_symbol_after_the_other() -> None:
    """Each symbol's probability is read where all later symbols are others."""
    model = randomised(replace(PIXELS, size=2))
    images = torch.rand(5, 3, 2, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    condition = Condition(attributes=torch.tensor([[1.0, -1.0]]).repeat(5, 1))
    tokens = model.alphabet.tokenize(images)
    flat, total = tokens.flatten(1), torch.zeros(5)
    for place in range(flat.shape[1]):
        others = torch.randint(0, 4, flat.shape)
        others[:, : place + 1] = flat[:, : place + 1]
        total -= model.nats(others.view_as(tokens), condition).flatten(1)[:, place]
    torch.testing.assert_close(model.log_probability(images, condition), total, rtol=0, atol=1e-5)
    assert (model.log_probability(images, Condition()) - total).abs().max() > 1e-3


@pytest.mark.parametrize("make", [lambda: randomised(PIXELS), latent], ids=["pixels", "codes"])
def test_cached_probabilities_equal_recomputed_ones(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    given = {"Smiling": "yes"} if model.conditions.attributes else None
    pairs = read_pairs(pairs_of(model, tmp_path / "pairs", condition=given))
    kept = reference_log_probabilities(model, pairs, tmp_path)
    condition = condition_of_pairs(pairs, model)
    for column, side in enumerate((pairs.chosen, pairs.rejected)):
        one = [
            model.trained.log_probability(as_input(side[i : i + 1]), condition[slice(i, i + 1)])
            for i in range(len(pairs))
        ]
        np.testing.assert_allclose(kept[:, column], torch.cat(one).detach().numpy(), rtol=1e-5)
    monkeypatch.setattr(Autoregressive, "log_probability", None)
    np.testing.assert_array_equal(reference_log_probabilities(model, pairs, tmp_path), kept)
    monkeypatch.undo()
    # Other pairs, and other weights, are not taken for these.
    few = pairs.take(torch.arange(3))
    assert reference_log_probabilities(model, few, tmp_path).shape == (3, 2)
    with torch.no_grad():
        next(model.trained.parameters()).add_(0.1)
    assert not np.allclose(reference_log_probabilities(model, pairs, tmp_path), kept, atol=1e-4)


def test_the_distance_is_zero_for_a_model_and_itself_and_the_divergence_for_another() -> None:
    model, other = randomised(replace(PIXELS, size=2)), randomised(replace(PIXELS, size=2), seed=1)
    same = distance(model, model, Request(16), BRIGHT)
    assert same.kl == 0 and same.reward == same.before and same.positive == 1
    result = distance(model, other, Request(400, batch_size=200), BRIGHT)
    assert result.kl is not None and result.kl_error is not None and result.kl > 5 * result.kl_error > 0
    # The same divergence, from a Monte Carlo estimate of its own.
    images = model.generate(400, seed=1)
    exact = (model.log_probability(images, Condition()) - other.log_probability(images, Condition())).mean()
    assert result.kl == pytest.approx(float(exact), abs=6 * result.kl_error)
    assert distance(unet(), unet(), Request(2, options={"steps": 2}), BRIGHT).kl is None


# ---- pairs ----


def test_pairs_hold_what_the_model_sampled(tmp_path: Path) -> None:
    model = latent()
    pairs = read_pairs(pairs_of(model, tmp_path / "pairs", n=10, seed=3))
    assert source_of(model) == (pairs.record.model, pairs.record.codec) and pairs.record.codec
    images = [model.decode(side) for side in (pairs.chosen, pairs.rejected)]
    bright, dark = (BRIGHT.score(to_uint8(image), []) for image in images)
    assert (bright > dark).all() and pairs.record.rewards[0] > pairs.record.rewards[1]
    # Image i of the seed is one of pair i.
    for i, image in enumerate(model.generate(10, seed=3)):
        assert min((image - side[i]).abs().max() for side in images) < 1e-5
    assert Image.open(tmp_path / "pairs" / "preview.png").size == (10 * 34 + 2, 2 * 34 + 2)
    assert sorted(path.name for path in (tmp_path / "pairs").iterdir()) == [
        "pairs.json",
        "pairs.safetensors",
        "preview.png",
    ]


def test_pixels_come_back_as_the_same_symbols(tmp_path: Path) -> None:
    model = randomised(PIXELS)
    pairs = read_pairs(pairs_of(model, tmp_path / "pairs"))
    assert pairs.chosen.dtype == torch.uint8
    sampled = model.alphabet.tokenize(model.generate(12))
    both = [model.alphabet.tokenize(as_input(side)) for side in (pairs.chosen, pairs.rejected)]
    assert all(any(torch.equal(side[i], sampled[i]) for side in both) for i in range(12))


def test_identical_and_equal_pairs_are_left_out(tmp_path: Path) -> None:
    model = randomised(PIXELS)
    with pytest.raises(ValueError, match="no pair is left of 6: the two samples of each are identical or have equal"):
        pairs_of(model, tmp_path / "same", n=6, options={"top_k": 1})
    assert not (tmp_path / "same").exists()
    equal = Reward(lambda images, _: np.zeros(len(images)), "nothing", "unknown")
    with pytest.raises(ValueError, match="no pair is left of 6"):
        make_pairs(model, Request(6), equal, tmp_path / "equal")
    some = Reward(lambda images, _: (images.mean((1, 2, 3)) > 127).astype(float), "half", "unknown")
    pairs = make_pairs(model, Request(20), some, tmp_path / "some")
    assert 0 < len(pairs) < 20 and pairs.record.left_out == 20 - len(pairs) and pairs.record.judges == ()
    bad = Reward(lambda images, _: np.full(len(images), np.nan), "bad", "unknown")
    with pytest.raises(ValueError, match="bad: a reward of images range"):
        make_pairs(model, Request(6), bad, tmp_path / "bad")


def test_a_person_chooses_on_a_page(tmp_path: Path) -> None:
    model, folder = randomised(PIXELS), tmp_path / "pairs"
    made = make_pairs(model, Request(5), None, folder)
    page = (folder / "index.html").read_text()
    images = json.loads(re.findall(r"const images = (\[.*?\]), prompts", page)[0])
    assert len(images) == 5 and all(side.startswith("data:image/png;base64,") for pair in images for side in pair)
    assert made.record.reward == PERSON and made.record.judges == ()
    with pytest.raises(ValueError, match=r"has no choices.csv: open .*index.html in a browser, choose, and save it"):
        read_pairs(folder)
    (folder / CHOICES).write_text("pair,choice\n3,right\n0,left\n")
    pairs = read_pairs(folder)
    assert torch.equal(pairs.chosen, torch.stack([made.chosen[0], made.rejected[3]]))
    assert torch.equal(pairs.rejected, torch.stack([made.rejected[0], made.chosen[3]]))
    for text, message in {
        "pair,choice\n": "holds no pairs",
        "0,both\n": "line 1: expected a number of a pair and left or right, such as 12,left",
        "pair,choice\n7,left\n": "line 2: pair 7 does not exist: they are 0 to 4",
        "1,left\n1,right\n": "line 2: pair 1 is decided twice",
    }.items():
        (folder / CHOICES).write_text(text)
        with pytest.raises(ValueError, match=message):
            read_pairs(folder)


def test_pages_of_other_pairs_do_not_share_choices(tmp_path: Path) -> None:
    """Browsers keep the choices of all pages in one place, by this key."""
    model, keys = randomised(PIXELS), []
    for name, seed in (("a", 0), ("again", 0), ("b", 1)):
        make_pairs(model, Request(5, seed), None, tmp_path / name)
        keys += re.findall(r'key = "(.*?)"', (tmp_path / name / "index.html").read_text())
    assert keys[0] == keys[1] != keys[2] and len(keys) == 3


def test_prompts_on_the_page_cannot_end_its_script(tmp_path: Path) -> None:
    from genmodels.alignment.page import page

    prompt = "<!--<script></script><b>"  # "<!--<script" would let a later end of the script not count
    text = page([["a", "b"]], [prompt], "key")
    assert text.count("</script>") == text.count("<script") == 1 and "<!--" not in text and "<b>" not in text
    assert json.loads(re.findall(r"prompts = (\[.*?\]), key", text)[0]) == [prompt]


def test_several_folders_keep_their_conditions(tmp_path: Path) -> None:
    model = randomised(PIXELS)
    parts = [
        read_pairs(pairs_of(model, tmp_path / name, n=n, condition=given))
        for name, n, given in (("yes", 4, {"Smiling": "yes"}), ("none", 3, None), ("no", 5, {"Male": "no", "label": 1}))
    ]
    pairs = together(parts, model)
    assert pairs.attributes is not None and pairs.labels is not None and pairs.prompt is None
    assert pairs.attributes.tolist() == [[1, 0]] * 4 + [[0, 0]] * 3 + [[0, -1]] * 5
    assert pairs.labels.tolist() == [-1] * 7 + [1] * 5
    assert torch.equal(pairs.rejected, torch.cat([part.rejected for part in parts]))
    assert pairs.record.reward == "brightness" and len(pairs) == 12
    # Unknown attributes and labels are no condition: the probabilities are those of the single folders.
    single = [reference_log_probabilities(model, part, tmp_path) for part in parts]
    np.testing.assert_allclose(reference_log_probabilities(model, pairs, tmp_path), np.concatenate(single), rtol=1e-5)
    text = model_of("autoregressive")
    asked = [pairs_of(text, tmp_path / p, n=3, prompts=[p, "a woman"]) for p in ("a man", "a smiling man")]
    texts = [read_pairs(folder) for folder in asked]
    both = together(texts, text)
    assert both.prompt is not None
    assert [both.record.prompts[i] for i in both.prompt.tolist()] == [
        *("a man", "a woman", "a man", "a smiling man", "a woman", "a smiling man")
    ]
    plain = read_pairs(pairs_of(text, tmp_path / "plain", n=3))
    with pytest.raises(ValueError, match="some of the folders of pairs have prompts and others have none"):
        together([texts[0], plain], text)


def test_folders_that_are_no_pairs_are_refused(tmp_path: Path) -> None:
    folder = pairs_of(randomised(PIXELS), tmp_path / "pairs", n=4)
    with pytest.raises(ValueError, match="is not a folder of preference pairs: make one with genmodels prefer"):
        read_pairs(tmp_path)
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    with (damaged / "pairs.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match="is damaged: its checksum is not that of pairs.json"):
        read_pairs(damaged)
    pairs = read_pairs(folder)
    twins = tmp_path / "twins"
    twins.mkdir()
    replace(pairs, rejected=torch.cat([pairs.rejected[:3], pairs.chosen[3:]])).save(twins)
    with pytest.raises(ValueError, match="the two samples of 1 of 4 pairs are identical, such as pair 3"):
        read_pairs(twins)
    none = tmp_path / "none"
    none.mkdir()
    pairs.take(torch.arange(0)).save(none)
    with pytest.raises(ValueError, match="holds no pairs"):
        read_pairs(none)
    assert identical(pairs).tolist() == [False] * 4
    for part, message in (
        ({"rejected": pairs.rejected[:, :2]}, "does not hold pairs: chosen, rejected; make the pairs again"),
        ({"attributes": torch.zeros(2, 2, dtype=torch.int8)}, "does not belong to pairs.json: make the pairs again"),
        ({"prompt": torch.zeros(4, dtype=torch.int32)}, "does not belong to pairs.json: make the pairs again"),
    ):
        wrong = tmp_path / "wrong"
        wrong.mkdir()
        replace(pairs, **part).save(wrong)
        with pytest.raises(ValueError, match=message):
            read_pairs(wrong)
        shutil.rmtree(wrong)


# ---- rewards ----


def real_faces(n: int = 80) -> Reference:
    """Images whose attribute Bright is their brightness."""
    rng = np.random.default_rng(0)
    levels = np.where(np.arange(n) % 2, 60, 190)
    pixels = (levels[:, None, None, None] + rng.integers(-50, 50, (n, 4, 4, 3))).astype(np.uint8)
    attributes = np.where(np.arange(n) % 2, -1, 1).astype(np.int8)[:, None]
    half = Images(pixels[: n // 2], "train"), Images(pixels[n // 2 :], "valid")
    both = attributes[: n // 2], attributes[n // 2 :]
    return Reference(half[1], Protocol(), (), half[0], both[1], both[0], ("Bright",))


FEATURES = Extractor(
    "mean", lambda pixels: torch.stack([pixels.float().mean((1, 2, 3)), pixels[:, 0, 0, 0].float()], 1)
)


def test_the_reward_of_an_attribute_is_positive_where_a_probe_finds_it(capsys: pytest.CaptureFixture[str]) -> None:
    images = np.stack([np.full((4, 4, 3), level, np.uint8) for level in (20, 230)])
    reward = attribute_reward("Bright", real_faces(), FEATURES)
    assert "the probe of Bright has a balanced accuracy of 1.000 on valid" in capsys.readouterr().err
    dark, bright = reward.score(images, [])
    assert dark < 0 < bright and reward.rule == "attribute Bright=yes (probe of mean, train)"
    np.testing.assert_allclose(
        attribute_reward("Bright=no", real_faces(), FEATURES).score(images, []), [-dark, -bright]
    )


def test_the_reward_of_prompts_is_the_cosine() -> None:
    vectors = {"red": [1.0, 0.0], "blue": [0.6, 0.8]}
    network = Extractor(
        "pair",
        lambda pixels: torch.nn.functional.normalize(pixels[:, ::2, 0, 0].float(), dim=1),
        sentences=lambda texts: torch.tensor([vectors[text] for text in texts]),
    )
    images = np.zeros((2, 4, 4, 3), np.uint8)
    images[..., 0] = 100
    assert clip_reward(network).score(images, ["red", "blue"]).tolist() == pytest.approx([100, 60])
    with pytest.raises(ValueError, match="which embeds sentences too"):
        clip_reward(FEATURES)


def test_rewards_that_do_not_exist_are_refused() -> None:
    for spec in ("beauty", "attribute", "realism=1", "clip="):
        with pytest.raises(ValueError, match=f"--reward {spec}: expected one of attribute=NAME, .*clip=RUN, realism"):
            check_reward(spec)
    with pytest.raises(ValueError, match="train has no such attribute; known: Bright"):
        attribute_reward("Smiling", real_faces(), FEATURES)
    with pytest.raises(ValueError, match="write attribute=Bright, or attribute=Bright=no"):
        attribute_reward("Bright=maybe", real_faces(), FEATURES)
    with pytest.raises(ValueError, match="train has 10 images with Bright, 20 are needed for a probe"):
        attribute_reward("Bright", real_faces(40), FEATURES)


# ---- runs ----


def dpo_recipe(output: Path, **settings: Any) -> Any:
    how = {"steps": 8, "batch_size": 4, "log_every": 1, "save_every": 4, "keep": 9, "track": "none"}
    return recipe_class("dpo")(output=output, optim=OptimConfig(lr=1e-3), **how | settings)


@pytest.mark.parametrize("make", [lambda: randomised(PIXELS), unet], ids=["pixels", "diffusion"])
def test_a_resumed_run_equals_an_uninterrupted_one(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genmodels.training.show.GRID", 1)
    monkeypatch.setenv("GENMODELS_CACHE", str(tmp_path / "cache"))
    parent, pairs = tmp_path / "parent", tmp_path / "pairs"
    make().save_pretrained(parent)
    options = {} if make().trained.can("log_probability") else {"steps": 2}
    pairs_of(genmodels.load(parent), pairs, options=options)
    given = {"run": parent, "pairs": (pairs,)}
    whole = training.train_dpo(dpo_recipe(tmp_path / "whole", **given))
    parts = tmp_path / "parts"
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "step_00000008")
    (parts / "model.safetensors").unlink()
    torch.manual_seed(7)
    training.train_dpo(dpo_recipe(parts, **given, resume=True))
    for name in ("model.safetensors", "checkpoints/step_00000008/optimizer.safetensors"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()
    # The result is an ordinary model, which has moved, and is not the policy and its reference.
    model, before = genmodels.load(whole), genmodels.load(parent)
    assert model.config == before.config and type(model) is type(before)
    assert model.state_dict().keys() == before.state_dict().keys()
    assert weights_hash(model) != weights_hash(before)
    # Other pairs are not those of the run.
    pairs_of(before, tmp_path / "other", seed=5, options=options)
    with pytest.raises(ValueError, match=r"cannot resume .*data is '"):
        training.train_dpo(dpo_recipe(parts, run=parent, pairs=(tmp_path / "other",), resume=True))


def test_pairs_of_another_model_or_codec_and_models_without_a_likelihood_are_refused(tmp_path: Path) -> None:
    model, other = randomised(PIXELS), randomised(PIXELS, seed=1)
    for name, each in {"model": model, "other": other, "latent": latent()}.items():
        each.save_pretrained(tmp_path / name)
    pairs = pairs_of(genmodels.load(tmp_path / "model"), tmp_path / "pairs")

    def refused(message: str, **given: Any) -> None:
        with pytest.raises(ValueError, match=message):
            training.train_dpo(dpo_recipe(tmp_path / "out", **{"run": tmp_path / "model", "pairs": (pairs,)} | given))
        assert not (tmp_path / "out").exists()

    refused("was sampled from another autoregressive than .*other .weights .*: make pairs with", run=tmp_path / "other")
    refused("was made with another codec than that of .*latent .none: its pixels, not c0dec", run=tmp_path / "latent")
    refused("--beta must be above 0, got -1", beta=-1.0)
    refused("no such run folder", run=tmp_path / "absent")
    refused("is not a folder of preference pairs", pairs=(tmp_path,))
    refused("give a run and pairs of its samples: genmodels train dpo RUN --pairs PAIRS", pairs=())
    for family in ("vae", "gan"):
        kind = genmodels.family(family)
        made: Any = kind(from_dict(kind.Config, SMALL[family], "config"))
        made.save_pretrained(tmp_path / family)
        refused(f"{family} models have no likelihood, which DPO needs", run=tmp_path / family)
    with pytest.raises(ValueError, match="unet models have no likelihood"):
        DPO(unet(replace(FLOW, process="meanflow")))
    policy, batch = dpo_batch(model, pairs)
    with pytest.raises(ValueError, match="a batch of DPO needs pairs"):
        policy(replace(batch, latents=None))


def test_the_commands(data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert train("vqvae", *data, *QUICK, *CODEC, "--steps", "6", "--output", "runs/vq") == 0
    assert (
        train("autoregressive", *data, *QUICK, *PRIOR, "--codec", "runs/vq", "--steps", "8", "--output", "runs/ar") == 0
    )
    made = ["prefer", "runs/ar", "--reward", "realism", "--n", "12", "--out", "pairs", "--temperature", "1.1"]
    assert main(made) == 0
    assert "next: genmodels train dpo runs/ar --pairs pairs" in capsys.readouterr().out
    assert json.loads(Path("pairs/pairs.json").read_text())["options"] == {"temperature": 1.1}
    asked = ["--pairs", "pairs", "--steps", "4", "--batch-size", "4", "--log-every", "1", "--track", "none"]
    assert train("dpo", "runs/ar", *asked, "--output", "runs/dpo") == 0
    assert "the pairs were chosen by: realism (faces" in capsys.readouterr().err

    first, *_, last = [json.loads(line) for line in Path("runs/dpo/metrics.jsonl").read_text().splitlines()]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4) and abs(first["margin"]) < 1e-3
    assert {"beta", "margin", "kl", "chosen_reward", "rejected_reward", "accuracy", "loss"} <= last.keys()
    settings, parent = (yaml.safe_load(Path(run, "config.yaml").read_text()) for run in ("runs/dpo", "runs/ar"))
    assert settings["family"] == "dpo" and "model" not in settings and "codec" not in settings
    assert [settings[name] for name in ("data", "root", "fingerprint")] == [
        parent[name] for name in ("data", "root", "fingerprint")
    ]
    assert settings["pairs"] == [str(Path("pairs").absolute())]
    card = Path("runs/dpo/README.md").read_text()
    assert "genmodels train dpo --config" in card and str(Path.cwd()) not in card and "- pairs\n" in card
    assert [path.name for path in Path("runs/dpo/samples").iterdir()]

    # The run records what chose, and an evaluation by it says so.
    network = replace(FEATURES, weights=settings["judges"][0])
    assert chosen_by("runs/dpo", [network, FEATURES]) == (
        "mean chose the preference pairs that the model was trained on: its scores do not judge it independently",
    )
    assert chosen_by("runs/ar", [network]) == ()

    assert main(["sample", "runs/dpo", "--n", "4", "--out", "samples.npy"]) == 0
    assert np.load("samples.npy").shape == (4, 16, 16, 3)
    assert main(["prefer", "runs/dpo", "--reward", "realism", "--n", "8", "--against", "runs/ar"]) == 0
    assert re.search(r"KL divergence of runs/dpo from runs/ar: -?\d\.\d+ \+- \d\.\d+ nats", capsys.readouterr().out)
    assert train("dpo", "--config", "runs/dpo/config.yaml", "--output", "runs/again") == 0
    assert weights_hash(genmodels.load("runs/again")) == weights_hash(genmodels.load("runs/dpo"))
    assert train("dpo", "runs/ar", *asked, "--output", "runs/dry", "--dry-run") == 0
    assert not Path("runs/dry").exists()
    # A second round: its pairs are of the new model, and it remembers both judges.
    assert main(["prefer", "runs/dpo", "--choose", "--n", "3", "--out", "more"]) == 0
    Path("more/choices.csv").write_text("pair,choice\n0,left\n1,right\n")
    assert train("dpo", "runs/dpo", "--pairs", "more", *asked[2:], "--output", "runs/more") == 0
    again = yaml.safe_load(Path("runs/more/config.yaml").read_text())
    assert again["judges"] == settings["judges"] and again["fingerprint"] == parent["fingerprint"]


def test_command_lines_that_cannot_work(data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    randomised(PIXELS).save_pretrained("ar")
    reward = ["--reward", "realism"]
    for arguments, message in (
        ([], "give --reward, or --choose"),
        ([*reward, "--choose", "--out", "p"], "give --reward, or --choose"),
        (reward, "give --out, the folder for the pairs, or --against"),
        (["--choose", "--against", "ar"], "--against compares rewards"),
        ([*reward, "--out", "p", "--n", "0"], "--n and --batch-size must be at least 1"),
        (["--choose", "--out", "p", "--n", "2000"], "a page of at most 1,000 pairs: lower --n 2000"),
        (["--reward", "charm", "--out", "p"], "--reward charm: expected one of"),
        (
            [*reward, "--out", "p", "--attributes", "Bald=yes"],
            "unknown attribute 'Bald'; this model knows: Smiling",
        ),
        ([*reward, "--out", "p", "--prompt", "a man"], "a prompt was given, and this model was trained without text"),
    ):
        assert main(["prefer", "ar", *arguments]) == 2
        assert message in capsys.readouterr().err
    Path("full").mkdir()
    Path("full/file").touch()
    assert main(["prefer", "ar", *reward, "--out", "full"]) == 1
    assert "full is not an empty folder: choose another --out" in capsys.readouterr().err
    assert train("dpo", "ar", "--pairs", "p", "--data", "celeba") == 2
    assert "Unrecognized options: --data" in capsys.readouterr().err
