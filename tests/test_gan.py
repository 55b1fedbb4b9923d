"""GAN: losses, networks, conditions and latents."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import in_two_processes
from test_fit import assert_equal, lines
from tiny import faces, recipe
from torch import Tensor, nn

from genmodels.conditions import Condition, ConditionConfig
from genmodels.evaluation.cost import training_operations
from genmodels.gan import GAN, GANConfig
from genmodels.latent import Latent
from genmodels.nn.dcgan import DCCritic, DCGenerator
from genmodels.nn.r3gan import R3Critic, R3Generator, ResidualBlock
from genmodels.nn.regression import LinearMap
from genmodels.training.fit import fit
from genmodels.training.setup import compile_blocks
from genmodels.types import Batch, Noise
from genmodels.vqvae import VQVAE, VQVAEConfig

SMALL: dict[str, Any] = dict(size=16, channels=(16, 16, 8), blocks=1, group=8, latent_dim=8, penalty_every=1)
TWO = ConditionConfig(("Male", "Smiling"))


def small(**settings: Any) -> GAN:
    torch.manual_seed(0)
    return GAN(GANConfig(**(SMALL | settings)))


def images(n: int = 4, size: int = 16) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def batch(n: int = 4, step: int = 0, progress: float = 0.0, condition: Condition | None = None) -> Batch:
    return Batch(images(n), Noise.for_images(0, range(n)), condition or Condition(), step, progress)


class Linear(nn.Module):
    """A critic whose slope is known."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 16**2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


# ---- the loss ----


def with_linear_critic(**settings: Any) -> tuple[GAN, float]:
    model = small(**settings)
    model.critic = Linear()
    return model, model.critic.layer.weight.square().sum().item()


def test_penalties_of_a_linear_critic() -> None:
    model, squared = with_linear_critic(r1=3.0, r2=5.0)
    loss, metrics = model(batch(), "critic")
    without, _ = with_linear_critic(r1=0.0, r2=0.0)[0](batch(), "critic")
    assert metrics["r1"].item() == pytest.approx(squared) and metrics["r2"].item() == pytest.approx(squared)
    assert (loss - without).item() == pytest.approx((3 + 5) / 2 * squared, rel=1e-4)


def test_penalties_fade() -> None:
    model, squared = with_linear_critic(r1=3.0, r2=0.0, penalty_end=0.1)
    without = with_linear_critic(r1=0.0, r2=0.0)[0](batch(), "critic")[0].item()
    for progress, share in ((0.0, 1.0), (0.5, 0.55), (1.0, 0.1)):
        loss, metrics = model(batch(progress=progress), "critic")
        assert loss.item() - without == pytest.approx(share * 1.5 * squared, rel=1e-4)
        assert "r2" not in metrics


def test_lazy_penalties_weigh_as_much_in_all() -> None:
    lazy, squared = with_linear_critic(r1=2.0, r2=2.0, penalty_every=4)
    plain = [with_linear_critic(r1=0.0, r2=0.0)[0](batch(step=step), "critic")[0].item() for step in range(4)]
    steps = [lazy(batch(step=step), "critic") for step in range(4)]
    extra = [loss.item() - p for (loss, _), p in zip(steps, plain, strict=True)]
    assert extra == pytest.approx([4 * 2 * squared, 0, 0, 0], rel=1e-4, abs=1e-6)
    assert ["r1" in metrics for _, metrics in steps] == [True, False, False, False]


def test_slope_penalty_of_a_linear_critic() -> None:
    model, squared = with_linear_critic(r1=0.0, r2=0.0, slope_penalty=10.0, loss="wasserstein")
    loss, metrics = model(batch(), "critic")
    without, _ = with_linear_critic(r1=0.0, r2=0.0, loss="wasserstein")[0](batch(), "critic")
    assert metrics["slope"].item() == pytest.approx((squared**0.5 - 1) ** 2, rel=1e-4)
    assert (loss - without).item() == pytest.approx(10 * (squared**0.5 - 1) ** 2, rel=1e-4)


def test_the_generator_climbs_the_critics_slope() -> None:
    """For D(x) = w . x the relativistic loss has gradient -sigmoid(D(real) - D(fake)) w / N."""
    model, _ = with_linear_critic()
    pair, samples = batch(), []
    synthesise = model.synthesise
    model.synthesise = lambda z, condition: samples.append(synthesise(z, condition)) or samples[0]
    loss, metrics = model(pair, "generator")
    apart = model.score(pair.images) - model.score(samples[0])
    assert loss.item() == pytest.approx(nn.functional.softplus(apart).mean().item(), rel=1e-5)
    assert metrics["fooled"].item() == (apart < 0).float().mean().item()
    (found,) = torch.autograd.grad(loss, samples[0])
    expected = -apart.sigmoid()[:, None] * model.critic.layer.weight / 4
    torch.testing.assert_close(found.flatten(1), expected)


def test_neither_turn_marks_the_images_of_the_batch() -> None:
    pair = batch()
    small()(pair, "critic")
    assert not pair.images.requires_grad


# ---- the networks ----


def test_r3gan_starts_with_blocks_that_do_nothing_and_unit_variance() -> None:
    torch.manual_seed(0)
    generator = R3Generator(64, (64, 64, 32), (2, 2, 2), 2, 16, 1)
    block = next(m for m in generator.modules() if isinstance(m, ResidualBlock))
    x = torch.randn(2, 64, 4, 4)
    assert torch.equal(block(x), x)
    out = generator(torch.randn(256, 64))
    assert out.shape == (256, 3, 16, 16) and 0.2 < out.std() < 3
    critic = R3Critic(1, (64, 64, 32), (2, 2, 2), 2, 16, 1)
    assert 0.05 < critic(torch.randn(256, 3, 16, 16)).std() < 3


def test_fixup_scale_of_the_inner_convolutions() -> None:
    """sqrt(2 / (1 + 0.2^2) / fan-in) L^(-1/4): the paper's L^(-1/(2 m - 2)) for m = 3 layers."""
    torch.manual_seed(0)
    block = ResidualBlock(128, 2, 16, depth=16)
    gain = (2 / 1.04) ** 0.5 * 16**-0.25
    assert block.conv1.weight.std().item() == pytest.approx(gain / 128**0.5, rel=0.02)
    assert block.conv2.weight.std().item() == pytest.approx(gain / (16 * 9) ** 0.5, rel=0.02)
    assert block.conv2.groups == 16


@pytest.mark.parametrize("size", [32, 64, 128, 256])
@pytest.mark.parametrize("network", ["r3gan", "dcgan"])
def test_every_size(size: int, network: str) -> None:
    model = GAN(GANConfig(size=size, network=network, channels=(8,) * 7, blocks=1, group=8, latent_dim=4))
    samples = model.synthesise(torch.randn(1, 4))
    assert samples.shape == (1, 3, size, size) and model.score(samples).shape == (1,)


def test_more_levels_than_widths() -> None:
    assert GANConfig(size=256, channels=(96, 64), group=16).widths == (96, 64, 32, 16, 16, 16, 16)
    assert GANConfig(size=32, channels=(96, 64, 32, 16, 16), patch=2).widths == (96, 64, 32)


def test_dcgan_has_the_papers_shapes() -> None:
    """100 latents, 1024 to 128 channels, strided kernels of 4: the generator has 12.7 M parameters,
    including the scales of its norms."""
    generator, critic = DCGenerator(100, (1024, 512, 256, 128)), DCCritic(1, (1024, 512, 256, 128))
    kernels = 16 * (100 * 1024 + 1024 * 512 + 512 * 256 + 256 * 128 + 128 * 3)
    assert sum(p.numel() for p in generator.parameters()) == kernels + 3 + 2 * (1024 + 512 + 256 + 128)
    assert generator(torch.randn(2, 100)).abs().max() <= 1
    assert critic(torch.randn(2, 3, 64, 64)).shape == (2, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(size=48), "size must be 4 times a power of 2"),
        (dict(size=64, patch=32), "size must be 128 times a power of 2"),
        (dict(latents=(4, 4, 8)), "latents must be \\(channels, side, side\\)"),
        (dict(latents=(4, 6, 6)), "the side of the latents must be 4 times a power of 2"),
        (dict(group=7), "channels must be multiples of 7"),
        (dict(network="dcgan", channels=(20, 20, 20)), "channels must be multiples of 8"),
        (dict(network="style"), "network must be"),
        (dict(loss="least squares"), "loss must be"),
        (dict(r1=-1.0), "r1 must not be negative"),
        (dict(augment=1.5), "augment must be in"),
        (dict(penalty_every=0), "penalty_every must be at least 1"),
        (dict(latents=(1, 4, 4), latent_dim=99, principal=17), "principal 17 is more than the numbers of an image"),
        (dict(principal=9), "principal 9 must be at most latent_dim 8"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GANConfig(**(SMALL | settings))


def test_compiled_blocks_are_left_alone_where_slopes_are_needed() -> None:
    """torch.compile has no second derivatives, so steps with penalties must not be compiled."""
    plain, compiled = small(penalty_every=2, blocks=2), small(penalty_every=2, blocks=2)
    compile_blocks(compiled, backend="aot_eager")
    try:
        for step in (0, 1):
            for turn in plain.turns:
                ours, theirs = plain(batch(step=step), turn)[0], compiled(batch(step=step), turn)[0]
                torch.testing.assert_close(ours, theirs)
                ours.backward()
                theirs.backward()
        for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-4)
    finally:
        torch.compiler.reset()


# ---- conditions ----


def test_projection_of_the_condition() -> None:
    """score(x, y) - score(x) = h(x) . e(y), and e is linear in the attributes."""
    model = small(condition=TWO)
    nn.init.normal_(model.critic_condition.attributes.weight)
    x = images()
    asked = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    one = model.score(x, Condition(asked)) - model.score(x)
    torch.testing.assert_close(model.score(x, Condition(-asked)) - model.score(x), -one, atol=1e-5, rtol=1e-4)
    assert one.abs().min() > 1e-4
    features = model.critic(x)[:, 1:]
    torch.testing.assert_close(one, features @ model.critic_condition.attributes.weight[:, 0], atol=1e-5, rtol=1e-4)


def test_a_conditional_gan_trains_all_of_itself_and_obeys() -> None:
    model = small(condition=TWO)
    condition = Condition(torch.tensor([[1.0, -1.0], [-1.0, 1.0], [1.0, 1.0], [-1.0, -1.0]]))
    for turn in model.turns:
        model(batch(condition=condition), turn)[0].backward()
        for name, parameter in model.named_parameters():
            if any(parameter is own for own in model.parameters_for(turn)):
                assert parameter.grad is not None, name
        model.zero_grad()
    nn.init.normal_(model.generator_condition.attributes.weight)
    yes, no = (model.generate(1, seed=3, condition=Condition(torch.tensor([[v, 0.0]]))) for v in (1.0, -1.0))
    assert (yes - no).abs().max() > 1e-2


# ---- latents ----


def test_truncation_is_a_truncated_normal() -> None:
    model = small(latent_dim=64)
    z = model.draw_latents(Noise.for_images(0, range(500)), model.options(truncation=1.0))
    assert z.abs().max() < 1 and z.mean().abs() < 0.02
    expected = torch.distributions.Normal(0.0, 1.0)
    sides = torch.rand(20_000, generator=torch.Generator().manual_seed(0)) * 0.6827 + 0.1587
    assert z.std().item() == pytest.approx(expected.icdf(sides).std().item(), abs=0.01)
    plain = model.draw_latents(Noise.for_images(0, range(500)), model.options())
    order = plain.flatten().argsort()
    assert (z.flatten()[order].diff() >= 0).all(), "the same numbers, closer together"
    with pytest.raises(ValueError, match="truncation must be above 0"):
        model.options(truncation=0.0)


def test_least_squares_are_found() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(500, 6), torch.randn(6, 2)
    found = LinearMap(6, 2)
    found.fit(x, x @ weight + 3)
    torch.testing.assert_close(found(x), x @ weight + 3, atol=0.02, rtol=0)


def test_inversion_finds_what_the_generator_made() -> None:
    """Better than the encoder's guess, which is better than none; every image by itself."""
    model = small().eval()
    for block in model.generator.modules():
        if isinstance(block, ResidualBlock):
            nn.init.normal_(block.conv3.weight, std=0.3)  # else it were linear
    model.calibrate([images(16)] * 40)
    z = torch.randn(6, 8, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        target = model.synthesise(z).clamp(-1, 1)
        guess = model.synthesise(model.find_latents(target, exact=False)).clamp(-1, 1)
        rebuilt = model.reconstruct(target)
        alone = model.reconstruct(target[2:3])
    none = (target - target.mean(0)).square().mean()
    guessed, found = ((x - target).square().mean() for x in (guess, rebuilt))
    assert found < 0.1 * none and guessed < 0.5 * none and found < guessed
    torch.testing.assert_close(alone[0], rebuilt[2], atol=1e-3, rtol=0)
    assert all(p.grad is None for p in model.parameters())


def test_principal_start_is_a_gaussian_of_the_images() -> None:
    model = small(principal=8)
    data = images(300)
    model.initialise([data])
    z = torch.randn(2, 8)
    torch.testing.assert_close(model.synthesise(z), model.principal.decode(z))
    model(batch(), "generator")[0].backward()
    assert model.generator.head.weight.grad.abs().max() > 0


def test_numbers_that_mean_nothing_are_no_alarm() -> None:
    """A critic that puts samples above real faces, or two sets of the same faces a hair apart."""
    model = small()
    model.calibrate([images(8)])
    with torch.no_grad():
        for parameter in model.critic.parameters():
            parameter.zero_()
    numbers, warnings = model.diagnose(images(8), images(8))
    assert numbers["critic/memorised"] != numbers["critic/memorised"] and not warnings  # nan

    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :1, 0, 0] + 0.01 * x.mean()

    model.critic = Noisy()
    model.generator = nn.Sequential(nn.Linear(8, 3 * 16 * 16), nn.Unflatten(1, (3, 16, 16)))
    nn.init.zeros_(model.generator[0].weight)
    nn.init.constant_(model.generator[0].bias, -0.02)
    seen = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    numbers, warnings = model.diagnose(seen - seen.mean() + 0.05, seen - seen.mean())
    assert not warnings, numbers


def test_diagnosis() -> None:
    """Scores of 1 (seen), 0 (held-out) and -1 (generated) give (1 - 0) / (1 - -1) = 1/2."""
    model = small()

    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((1, 2, 3))[:, None]

    class Minus(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return -torch.ones(len(z), 3, 16, 16)

    model.critic, model.generator = Mean(), Minus()
    numbers, warnings = model.diagnose(torch.ones(4, 3, 16, 16), torch.zeros(4, 3, 16, 16))
    assert numbers["critic/memorised"] == pytest.approx(0.5) and not warnings
    assert (numbers["critic/seen"], numbers["critic/held_out"], numbers["critic/generated"]) == (1, 0, -1)
    _, warnings = model.diagnose(torch.ones(4, 3, 16, 16), -0.5 * torch.ones(4, 3, 16, 16))
    assert len(warnings) == 1 and "75%" in warnings[0] and "--model.augment" in warnings[0]


def test_latents_of_a_latent_model_are_its_samples() -> None:
    torch.manual_seed(0)
    codec = VQVAE(
        VQVAEConfig(size=16, patch=2, channels=(16, 16), encoder_blocks=(1, 0), decoder_blocks=(1, 0), code_dim=4)
    ).eval()
    codec.initialise([images(64)])
    model = Latent.over(codec, small(latents=(4, 4, 4), principal=8)).eval()
    model.initialise([images(64)])
    noise = [Noise.for_images(1, range(3)) for _ in range(2)]
    with torch.inference_mode():
        direct = model.sample(noise[0], Condition(), model.options())
        z = model.draw_latents(noise[1], model.options())
        assert torch.equal(model.from_latents(z), direct)
        assert model.find_latents(images(2)).shape == (2, 8)
    assert model.vector_scale != 1


# ---- the loop ----


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_gan import gan_run
from genmodels.sampling import processes
processes()
gan_run(Path(sys.argv[1]))
"""


def gan_run(output: Path, **changes: Any) -> Path:
    model = small(penalty_every=2, augment=0.3, condition=TWO)
    return fit(model, faces(size=16), recipe(output, size=16, steps=6, log_every=3, **changes))


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Both networks, penalties and augmentation included."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    in_two_processes(script, tmp_path / "two")
    one = gan_run(tmp_path / "one")
    assert_equal(one, tmp_path / "two", tolerance=2e-4, step=6)
    for ours, theirs in zip(lines(one), lines(tmp_path / "two"), strict=True):
        assert ours["critic/r1"] > 0 and ours["critic/r1"] == pytest.approx(theirs["critic/r1"], rel=1e-3)
        assert ours["critic/loss"] == pytest.approx(theirs["critic/loss"], rel=1e-4)


def test_accumulation_equals_the_large_batch(tmp_path: Path) -> None:
    whole, parts = gan_run(tmp_path / "whole"), gan_run(tmp_path / "parts", accumulate=4)
    assert_equal(whole, parts, tolerance=2e-4, step=6)


def test_half_precision_keeps_penalties_and_scores(tmp_path: Path) -> None:
    """Training in bf16. Scores are computed in full precision, because their differences matter."""
    full, half = gan_run(tmp_path / "full"), gan_run(tmp_path / "half", mixed_precision="bf16")
    for ours, theirs in zip(lines(half), lines(full), strict=True):
        assert ours["critic/r1"] == pytest.approx(theirs["critic/r1"], rel=0.1)
        assert ours["critic/loss"] == pytest.approx(theirs["critic/loss"], rel=0.05)
    for model in (small(), small(network="dcgan", channels=(16, 8), r1=0.0, r2=0.0)):
        last = model.critic.mix if isinstance(model.critic, R3Critic) else model.critic.last
        nn.init.ones_(last.weight)
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            scores = 1000 + model.score(images(64))
        assert len(scores.unique()) > 60


def test_resuming_goes_on_as_if_uninterrupted(tmp_path: Path) -> None:
    whole = gan_run(tmp_path / "whole")
    part = tmp_path / "part"
    model = small(penalty_every=2, augment=0.3, condition=TWO)
    settings = recipe(part, size=16, steps=6, log_every=3, save_every=3)
    fit(model, faces(size=16), replace(settings, keep=5))
    shutil.rmtree(part / "checkpoints" / "step_00000006")
    fit(
        small(penalty_every=2, augment=0.3, condition=TWO),
        faces(size=16),
        replace(settings, resume=True),
    )
    assert_equal(whole, part, tolerance=0, step=6)


@pytest.mark.parametrize("options", [{"r1": 1.0, "r2": 1.0}, {"r1": 0.0, "r2": 0.0, "slope_penalty": 10.0}])
def test_the_cost_of_penalties_is_counted(options: dict[str, float]) -> None:
    """Second derivatives under the counter of operations; a step without penalties costs less."""

    def operations(**more: float) -> float:
        return training_operations(small(**options, **more).eval(), seed=0)

    assert operations(penalty_every=1) > 1.1 * operations(penalty_every=4)
