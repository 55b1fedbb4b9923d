"""Texts as conditions: a new family without changes elsewhere, and tokens in every family."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_contract import faces
from token_family import TokenFamily
from torch import Tensor

import genmodels
from genmodels.autoregressive import Autoregressive, AutoregressiveConfig
from genmodels.base import Generator
from genmodels.conditions import Condition, ConditionConfig, Text, TextConfig
from genmodels.diffusion.process import MeanFlow
from genmodels.diffusion.unet import UNet, UNetConfig
from genmodels.dit import DiT, DiTConfig
from genmodels.exchange.export import export_to_diffusers
from genmodels.gan import GAN, GANConfig
from genmodels.nn.transformer import TransformerConfig
from genmodels.types import Batch, Noise

COLOURS = torch.tensor([[0.8, -0.8, -0.8], [-0.8, 0.8, -0.8], [-0.8, -0.8, 0.8], [0.8, 0.8, 0.8]])
WORDS = ConditionConfig(text=TextConfig(vocabulary=4, length=6))
BLOCKS = TransformerConfig(width=16, depth=2, heads=2)
PIXELS = AutoregressiveConfig(size=8, levels=8, condition=WORDS, transformer=replace(BLOCKS, qk_norm=True))
CODES = AutoregressiveConfig(codes=(1, 2), codebook_size=4, condition=WORDS, transformer=BLOCKS)
PATCHES = DiTConfig(size=8, patch=4, condition=WORDS, transformer=BLOCKS)
READERS: dict[str, Any] = {
    "autoregressive": lambda: Autoregressive(PIXELS),
    "dit": lambda: DiT(PATCHES),
    "dit:masked": lambda: DiT(replace(PATCHES, masking=replace(PATCHES.masking, keep=0.5, mixers=1))),
    "dit:meanflow": lambda: DiT(replace(PATCHES, process="meanflow", meanflow=MeanFlow(power=0.0))),
}
"""Families that read the tokens."""
POOLERS: dict[str, Any] = {
    "unet": lambda: UNet(
        UNetConfig(size=8, channels=(16, 16), blocks=1, attention=(False, False), head=8, groups=8, condition=WORDS)
    ),
    "gan": lambda: GAN(GANConfig(size=8, channels=(8, 8), blocks=1, group=8, latent_dim=8, condition=WORDS)),
}
"""Families that read the pooled vector."""


def text(*sentences: list[int], length: int = 3, padding: int = 0) -> Condition:
    """Make a Text of sentences of word ids, padded to one length."""
    ids = torch.full((len(sentences), length), padding)
    mask = torch.zeros(len(sentences), length, dtype=torch.bool)
    for i, words in enumerate(sentences):
        ids[i, : len(words)] = torch.tensor(words)
        mask[i, : len(words)] = True
    return Condition(text=Text(ids, mask))


def shaken(model: Generator) -> Generator:
    """Add noise to all weights, so that layers that start at zero matter."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def made(name: str) -> Generator:
    torch.manual_seed(0)
    return shaken((READERS | POOLERS)[name]())


def loss_of(model: Generator, condition: Condition, n: int = 4) -> float:
    """The loss of the first turn, without dropout of the condition."""
    config = replace(model.config, condition=replace(model.config.condition, drop=0.0))
    model.config = config
    return model.loss(Batch(faces(n, size=8), Noise.for_images(0, range(n)), condition), model.turns[0])[0].item()


def trained(model: Generator, images: Any, steps: int, lr: float) -> Generator:
    """Train on random sentences of two words, of which `images` makes what they describe."""
    optimiser = torch.optim.Adam(model.parameters(), lr)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        words = torch.randint(0, 4, (32, 2), generator=generator)
        ids = torch.cat([words, torch.randint(0, 4, (32, 1), generator=generator)], 1)  # and padding
        condition = Condition(text=Text(ids, torch.tensor([True, True, False]).expand(32, -1)))
        loss, _ = model.loss(Batch(images(words), Noise.for_images(step, range(32)), condition), "model")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def halves(words: Tensor) -> Tensor:
    """Make images whose left and right halves have the colours of the first and second word."""
    return COLOURS[words].transpose(1, 2).unsqueeze(2).repeat_interleave(4, 3).expand(-1, -1, 8, -1)


# ---- a new family ----


def test_a_new_family_follows_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = trained(TokenFamily(), halves, steps=100, lr=5e-3)
    every = [[a, b] for a in range(4) for b in range(4)]
    samples = model.generate(16, condition=text(*every, padding=3))
    assert (samples - halves(torch.tensor(every))).abs().mean() < 0.1
    # Without a text, a sample is the mean of the images.
    assert (model.generate(1) - COLOURS.mean(0).view(1, 3, 1, 1)).abs().max() < 0.35
    monkeypatch.setitem(genmodels.FAMILIES, "tokens", "token_family:TokenFamily")
    model.save_pretrained(tmp_path / "m")
    loaded = genmodels.load(tmp_path / "m")
    assert loaded.conditions == model.conditions and loaded.conditions.text.vocabulary == 4
    assert torch.equal(loaded.generate(16, condition=text(*every)), samples)
    with pytest.raises(ValueError, match="the text has 4 tokens, and this model takes 1 to 3"):
        loaded.generate(1, condition=text([0, 1, 2, 3], length=4))


def test_an_autoregressive_prior_follows_its_text() -> None:
    torch.manual_seed(0)
    model = trained(Autoregressive(CODES), lambda words: words.unsqueeze(1), steps=60, lr=1e-2)
    every = [[a, b] for a in range(4) for b in range(4)]
    noise = Noise.for_images(0, range(16))
    codes = model.sample(noise, text(*every), model.options(guidance=2.0))
    assert (codes == torch.tensor(every).unsqueeze(1)).float().mean() > 0.9


# ---- how families read a text ----


@pytest.mark.parametrize("name", [*READERS, *POOLERS])
def test_the_loss_depends_on_the_text(name: str) -> None:
    model = made(name)
    one, other = (loss_of(model, text(*[[0, word]] * 4)) for word in (1, 2))
    assert abs(one - other) > 1e-4 * abs(one)


@pytest.mark.parametrize("name", READERS)
def test_tokens_are_read_one_by_one(name: str) -> None:
    """The pooled vector does not know the order of the words."""
    model = made(name)
    pooled = model.condition(text([0, 1], [1, 0]), 2, torch.device("cpu")).pooled
    torch.testing.assert_close(pooled[0], pooled[1])
    one, other = (loss_of(model, text(*[words] * 4)) for words in ([0, 1], [1, 0]))
    assert abs(one - other) > 1e-4 * abs(one)


@pytest.mark.parametrize("name", [*READERS, *POOLERS])
def test_padding_changes_nothing(name: str) -> None:
    model, sentences = made(name), [[1, 2, 3], [3, 0], [2], []]
    expected = loss_of(model, text(*sentences))
    for length, padding in ((3, 3), (6, 0), (6, 2)):
        assert loss_of(model, text(*sentences, length=length, padding=padding)) == pytest.approx(expected, rel=1e-6)
    assert abs(loss_of(model, text([1, 2, 3], [3, 0, 0], [2, 0, 0], [0])) - expected) > 1e-5


@pytest.mark.parametrize("name", [*READERS, *POOLERS])
def test_a_dropped_text_is_no_text(name: str) -> None:
    model = made(name)
    expected = loss_of(model, Condition())
    assert loss_of(model, text([], [], [], [])) == pytest.approx(expected, rel=1e-6)
    model.config = replace(model.config, condition=replace(WORDS, drop=1.0))
    batch = Batch(faces(4, size=8), Noise.for_images(0, range(4)), text(*[[1, 2]] * 4))
    assert model.loss(batch, model.turns[0])[0].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", READERS)
def test_gradients_reach_every_weight(name: str) -> None:
    model = made(name)
    batch = Batch(faces(4, size=8), Noise.for_images(0, range(4)), text([1, 2, 3], [0], [2, 1], []))
    model.loss(batch, "model")[0].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", ["autoregressive", "dit", "dit:meanflow", "unet"])
def test_guidance_exaggerates_the_text(name: str) -> None:
    model, n = made(name), 3
    options = {"steps": 2}
    if name == "autoregressive":
        model, options = shaken(Autoregressive(replace(PIXELS, size=4))), {}

    def sampled(condition: Condition, guidance: float) -> Tensor:
        return model.generate(n, condition=condition, guidance=guidance, **options)

    asked = text(*[[1, 2]] * n)
    plain, guided = sampled(asked, 1.0), sampled(asked, 3.0)
    assert not torch.equal(plain, guided) and not torch.equal(plain, sampled(Condition(), 1.0))
    torch.testing.assert_close(sampled(text([], [], []), 3.0), sampled(Condition(), 1.0))


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_cached_generation_equals_teacher_forcing(guidance: float) -> None:
    model = made("autoregressive").requires_grad_(False)
    condition = model.condition(text([1, 2, 3], [0], []), 3, torch.device("cpu"))
    null = model.condition.nothing(3, torch.device("cpu"))
    uniform = torch.rand(3, 64, 3, generator=torch.Generator().manual_seed(0))
    prefix = model.alphabet.tokenize(faces(3, size=8))[:, :10]
    logits: list[Tensor] = []

    def choose(values: Tensor, chance: Tensor) -> Tensor:
        logits.append(values)
        return (chance * 8).long()

    guided = guidance != 1
    tokens = model.decoder.generate(condition, uniform, choose, prefix, guidance, null if guided else None)
    with_text, without = model.decoder(tokens, condition), model.decoder(tokens, null)
    expected = without + guidance * (with_text - without)
    torch.testing.assert_close(torch.stack(logits, 1), expected[:, 10:].flatten(1, 2), atol=1e-5, rtol=1e-5)
    assert (with_text[:2] - without[:2]).abs().max() > 0.1


# ---- models without text ----


def test_models_without_text_have_no_cross_attention() -> None:
    for name, model in {name: make() for name, make in READERS.items()}.items():
        plain = type(model)(replace(model.config, condition=ConditionConfig(("A",))))
        assert any("cross_attention" in key for key in model.state_dict()), name
        assert not [key for key in plain.state_dict() if "cross_attention" in key or "text" in key]
        with pytest.raises(ValueError, match="this model was built without text"):
            loss_of(plain, text(*[[1]] * 4))


def test_a_network_with_text_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="text without a text encoder, so that no tokenizer can be exported"):
        export_to_diffusers(made("unet"), tmp_path / "out")
