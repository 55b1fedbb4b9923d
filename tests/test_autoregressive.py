"""Autoregressive models: the chain rule by enumeration, the cache, alphabets and options."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from test_contract import faces

from genmodels.autoregressive import Autoregressive, AutoregressiveConfig, AutoregressiveOptions
from genmodels.conditions import Condition, ConditionConfig
from genmodels.nn.conditioning import Embedded
from genmodels.nn.transformer import TransformerConfig
from genmodels.types import Batch, Noise

SMALL = TransformerConfig(width=16, depth=2, heads=2, kv_heads=1, qk_norm=True)
CODES = AutoregressiveConfig(codes=(3, 4), codebook_size=11, transformer=SMALL)
RESIDUAL = AutoregressiveConfig(codes=(3, 4, 2), codebook_size=7, transformer=SMALL)
CONDITIONAL = replace(CODES, condition=ConditionConfig(("Smiling", "Male"), classes=3))


def randomised(config: AutoregressiveConfig, seed: int = 0) -> Autoregressive:
    """Build a model with large random weights. A new model predicts equal probabilities."""
    torch.manual_seed(seed)
    model = Autoregressive(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.normal_(std=0.4)
    return model


def codes(config: AutoregressiveConfig, n: int = 5, seed: int = 0) -> torch.Tensor:
    assert config.codes is not None and config.codebook_size is not None
    return torch.randint(0, config.codebook_size, (n, *config.codes), generator=torch.Generator().manual_seed(seed))


# ---- probabilities ----


@pytest.mark.parametrize(
    "config",
    [
        AutoregressiveConfig(size=2, levels=2, transformer=SMALL),  # 2 x 2 x 3 binary colours
        AutoregressiveConfig(codes=(2, 3), codebook_size=3, transformer=SMALL),
        AutoregressiveConfig(codes=(2, 1, 3), codebook_size=3, transformer=SMALL),
    ],
    ids=["pixels", "codes", "residual"],
)
def test_probabilities_of_all_grids_add_up_to_one(config: AutoregressiveConfig) -> None:
    model = randomised(config)
    rows, columns, symbols = config.alphabet().grid
    count = rows * columns * symbols
    every = torch.tensor(list(itertools.product(range(config.alphabet().size), repeat=count)))
    log_p = -model.nats(every.view(len(every), rows * columns, symbols), Condition()).sum((1, 2)).double()
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert log_p.std() > 0.5, "a uniform distribution would pass as well"


def test_uniform_noise_has_log2_levels_bits() -> None:
    config = AutoregressiveConfig(size=4, levels=8, transformer=SMALL)
    noise = Noise.for_images(0, range(64))
    images = noise.uniform(3, 4, 4) * 2 - 1
    new = Autoregressive(config)
    assert new.bits_per_dim(images, noise).tolist() == pytest.approx([3.0] * 64, abs=1e-5)
    # No model is better on average, and one that has been trained on noise is as good.
    assert randomised(config).bits_per_dim(images, noise).mean() > 3
    optimiser = torch.optim.Adam(new.parameters(), 3e-3)
    for step in range(60):
        fresh = Noise.for_images(step + 1, range(64))
        loss, _ = new.loss(Batch(fresh.uniform(3, 4, 4) * 2 - 1, fresh), "model")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert new.bits_per_dim(images, noise).mean().item() == pytest.approx(3, abs=0.03)


def test_bits_are_those_of_the_loss() -> None:
    model = randomised(AutoregressiveConfig(size=8, levels=16, transformer=SMALL))
    images = faces(4, size=8)
    loss, metrics = model.loss(Batch(images, Noise.for_images(0, range(4))), "model")
    bits = model.bits_per_dim(images, Noise.for_images(0, range(4))).mean()
    assert bits.item() == pytest.approx(loss.item() / math.log(2), rel=1e-5)
    assert metrics["bits_per_dim"].item() == pytest.approx(bits.item(), rel=1e-5)
    prior = randomised(CODES)
    _, metrics = prior.loss(Batch(codes(CODES), Noise.for_images(0, range(5))), "model")
    assert metrics["bits_per_token"].item() == pytest.approx(prior.bits_per_token(codes(CODES)).mean().item(), rel=1e-5)
    with pytest.raises(ValueError, match="bits per token, and they are not bits per dimension"):
        prior.bits_per_dim(codes(CODES), Noise.for_images(0, range(5)))


@pytest.mark.parametrize("config", [CODES, RESIDUAL], ids=["codes", "residual"])
def test_nothing_is_seen_of_the_future(config: AutoregressiveConfig) -> None:
    model = randomised(config)
    x = model.alphabet.tokenize(codes(config, 1))  # (1, T, S)
    zeros = Embedded(torch.zeros(1, 16))
    before = model.decoder(x, zeros)
    order = x.shape[1] * x.shape[2]
    for place in range(order):
        changed = x.flatten().clone()
        changed[place] = (changed[place] + 1) % config.alphabet().size
        moved = (model.decoder(changed.view_as(x), zeros) - before).abs().amax(-1).flatten()
        assert not moved[: place + 1].any()
        assert place == order - 1 or moved[place + 1 :].any()


# ---- sampling ----


@pytest.mark.parametrize("config", [CODES, RESIDUAL, CONDITIONAL], ids=["codes", "residual", "conditional"])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_cached_generation_equals_uncached(config: AutoregressiveConfig, guidance: float) -> None:
    model = randomised(config)
    condition = Embedded(torch.randn(5, 16, generator=torch.Generator().manual_seed(1)))
    null = Embedded(torch.zeros(5, 16))
    seen: list[torch.Tensor] = []

    def choose(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        seen.append(logits)
        return (uniform * config.alphabet().size).long()

    rows, columns, symbols = config.alphabet().grid
    uniform = torch.rand(5, rows * columns, symbols, generator=torch.Generator().manual_seed(2))
    prefix = model.alphabet.tokenize(codes(config))[:, :5]
    tokens = model.decoder.generate(condition, uniform, choose, prefix, guidance, null if guidance != 1 else None)
    assert torch.equal(tokens[:, :5], prefix)
    assert torch.equal(tokens[:, 5:], (uniform[:, 5:] * config.alphabet().size).long())
    plain, without = model.decoder(tokens, condition), model.decoder(tokens, null)
    expected = without + guidance * (plain - without)
    cached = torch.stack(seen, 1).unflatten(1, (-1, symbols))  # (N, T - 5, S, V)
    torch.testing.assert_close(cached, expected[:, 5:], atol=1e-5, rtol=1e-5)


def test_samples_follow_the_probabilities() -> None:
    config = AutoregressiveConfig(codes=(1, 2), codebook_size=3, transformer=SMALL)
    model = randomised(config)
    every = torch.cartesian_prod(torch.arange(3), torch.arange(3)).view(9, 1, 2)
    expected = (-model.nats(model.alphabet.tokenize(every), Condition()).sum((1, 2))).exp()
    drawn = model.sample(Noise.for_images(0, range(4000)), Condition(), model.options())
    found = torch.bincount((drawn[:, 0, 0] * 3 + drawn[:, 0, 1]), minlength=9) / 4000
    assert (found - expected).abs().max() < 0.03 and expected.max() > 0.2


def test_image_i_of_a_seed_does_not_depend_on_the_batch() -> None:
    model = randomised(RESIDUAL)
    whole = model.sample(Noise.for_images(3, range(6)), Condition(), model.options(top_p=0.9))
    part = model.sample(Noise.for_images(3, range(4, 6)), Condition(), model.options(top_p=0.9))
    assert torch.equal(whole[4:], part) and not torch.equal(whole[0], whole[1])


def test_top_k_of_one_is_greedy() -> None:
    model = randomised(CODES)
    drawn = model.sample(Noise.for_images(0, range(3)), Condition(), model.options(top_k=1))
    assert torch.equal(drawn[0], drawn[1])
    best = model.decoder(model.alphabet.tokenize(drawn), Embedded(torch.zeros(3, 16))).argmax(-1)
    assert torch.equal(best.view_as(drawn), drawn)


def test_guidance_and_conditions_change_the_samples() -> None:
    model = randomised(CONDITIONAL)

    def drawn(value: float, **options: float) -> torch.Tensor:
        condition = Condition(torch.tensor([[value, 0.0]]).expand(20, -1), torch.full((20,), 1))
        return model.sample(Noise.for_images(0, range(20)), condition, model.options(**options))

    assert not torch.equal(drawn(1), drawn(-1))
    assert not torch.equal(drawn(1), drawn(1, guidance=3))
    unknown = Condition(torch.zeros(20, 2), torch.full((20,), -1))
    open_ = model.sample(Noise.for_images(0, range(20)), unknown, model.options(guidance=3))
    assert torch.equal(open_, model.sample(Noise.for_images(0, range(20)), Condition(), model.options()))


def test_a_face_is_completed_from_its_upper_half() -> None:
    config = AutoregressiveConfig(size=8, levels=8, transformer=SMALL)
    model = randomised(config)
    images = faces(3, size=8)
    known = torch.arange(8).unsqueeze(1).expand(8, 8) < 5
    done = model.inpaint(images, known, Noise.for_images(0, range(3)), Condition(), model.options())
    rounded = model.alphabet.decode(model.alphabet.tokenize(images))
    assert torch.equal(done[:, :, :5], rounded[:, :, :5])
    assert not torch.equal(done[:, :, 5:], rounded[:, :, 5:])
    changed = torch.where(known, images, -images)  # the unknown part is not looked at
    again = model.inpaint(changed, known, Noise.for_images(0, range(3)), Condition(), model.options())
    assert torch.equal(again, done)
    nothing = model.inpaint(images, torch.zeros(8, 8, dtype=torch.bool), Noise([1, 2, 3]), Condition(), model.options())
    assert torch.equal(nothing, model.sample(Noise([1, 2, 3]), Condition(), model.options()))


# ---- alphabets ----


@pytest.mark.parametrize("levels", [2, 5, 32, 256])
def test_levels_decode_to_the_middle_of_their_values(levels: int) -> None:
    model = Autoregressive(AutoregressiveConfig(size=16, levels=levels, transformer=SMALL))
    values = torch.arange(256).view(1, 1, 16, 16).expand(1, 3, -1, -1)
    tokens = model.alphabet.tokenize(values / 127.5 - 1)
    assert tokens.shape == (1, 256, 3) and tokens.min() == 0 and tokens.max() == levels - 1
    assert torch.equal(tokens[0, :, 0], torch.arange(256) * levels // 256)
    back = (model.alphabet.decode(tokens) + 1) * 127.5
    assert (back - values).abs().max() <= 128 / levels + 0.5
    if levels == 256:
        torch.testing.assert_close(back, values.float(), atol=1e-3, rtol=0)
    assert torch.equal(model.alphabet.tokenize(model.alphabet.decode(tokens)), tokens)


def test_pixels_go_row_by_row_and_red_green_blue() -> None:
    model = Autoregressive(AutoregressiveConfig(size=2, levels=256, transformer=SMALL))
    image = torch.arange(12).view(1, 2, 2, 3).permute(0, 3, 1, 2)  # counts up in the order they are read
    assert model.alphabet.tokenize(image / 127.5 - 1).flatten().tolist() == list(range(12))


def test_codes_go_row_by_row_and_coarsest_first() -> None:
    model = Autoregressive(RESIDUAL)
    grid = torch.arange(24).view(1, 3, 4, 2) % 7
    assert model.alphabet.tokenize(grid).flatten().tolist() == (torch.arange(24) % 7).tolist()
    assert torch.equal(model.alphabet.decode(model.alphabet.tokenize(grid)), grid)


# ---- what cannot work ----


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (dict(temperature=0.0), "temperature must be above 0, got 0.0: top_k 1 takes the likeliest symbol"),
        (dict(temperature=-1.0), "temperature must be above 0, got -1.0"),
        (dict(top_p=0.0), r"top_p must be in \(0, 1\], got 0.0"),
        (dict(top_p=1.2), r"top_p must be in \(0, 1\], got 1.2"),
        (dict(top_k=0), "top_k must be at least 1"),
        (dict(min_p=-0.1), "min_p must be in"),
        (dict(guidance=-1.0), "guidance must not be negative"),
    ],
)
def test_options_that_cannot_work(option: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoregressiveOptions(**option)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(levels=1), "levels must be 2 to 256"),
        (dict(codes=(4, 4)), "codes and codebook_size must be given together"),
        (dict(codes=(4,), codebook_size=8), "codes must be"),
        (dict(codes=(4, 4), codebook_size=0), "the codebook is empty"),
    ],
)
def test_configs_that_cannot_work(config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoregressiveConfig(**config)


def test_networks_that_cannot_work() -> None:
    with pytest.raises(ValueError, match="heads of a multiple of 4 channels, got 6"):
        Autoregressive(replace(CODES, transformer=TransformerConfig(width=12, depth=1, heads=2)))


def test_sequences_longer_than_the_context_are_refused() -> None:
    model = Autoregressive(CODES)
    with pytest.raises(ValueError, match=r"context is 12 positions, codes of shape \(N, 3, 4\); got int64 \(2, 6, 4\)"):
        model.alphabet.tokenize(torch.zeros(2, 6, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"context is 12 positions.*got float32"):
        model.alphabet.tokenize(torch.zeros(2, 3, 4))
    pixels = Autoregressive(AutoregressiveConfig(size=8, transformer=SMALL))
    with pytest.raises(ValueError, match=r"images of shape \(N, 3, 8, 8\); got float32 \(1, 3, 16, 16\)"):
        pixels.bits_per_dim(torch.zeros(1, 3, 16, 16), Noise([0]))


def test_guidance_without_a_condition_is_refused() -> None:
    with pytest.raises(ValueError, match="guidance 2 needs a condition"):
        Autoregressive(AutoregressiveConfig(size=8, transformer=SMALL)).generate(1, guidance=2.0)


def test_a_prior_without_its_codec_makes_no_images() -> None:
    with pytest.raises(ValueError, match="prior over a codec's latents and makes no images without that codec"):
        Autoregressive(CODES).generate(1)


@pytest.mark.parametrize("known", [torch.ones(8, 8), torch.ones(8, 4, dtype=torch.bool)])
def test_other_masks_are_refused(known: torch.Tensor) -> None:
    model = Autoregressive(AutoregressiveConfig(size=8, transformer=SMALL))
    with pytest.raises(ValueError, match=r"must be bool \(8, 8\)"):
        model.inpaint(faces(1, size=8), known, Noise([0]), Condition(), model.options())
