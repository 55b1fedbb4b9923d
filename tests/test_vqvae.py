"""VQ-VAE: codes and vectors, the loss, the discriminator, and training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_fit import STATE, assert_equal, lines, tensors
from tiny import faces, recipe
from torch import Tensor

from genmodels.nn.conv import output_layer
from genmodels.nn.discriminator import (
    AdaptiveWeight,
    PatchDiscriminator,
    discriminator_hinge,
    generator_hinge,
)
from genmodels.nn.quantise.ema import EMACodebook
from genmodels.training.fit import fit
from genmodels.types import Batch, Noise
from genmodels.vqvae import VQVAE, VQVAEConfig

# At least 16 channels in 8 groups: group norm over single channels gives biases before it no
# gradients.
TINY: dict[str, Any] = dict(
    size=16, patch=4, channels=(16, 16), encoder_blocks=(1, 0), decoder_blocks=(1, 0), codebook_size=16, code_dim=4
)
KINDS: dict[str, dict[str, Any]] = {
    "ema": {},
    "rotation": dict(gradient="rotation"),
    "residual": dict(residual=3),
    "fsq": dict(quantiser="fsq", fsq_levels=(5, 4, 3)),
    "cosine": dict(quantiser="cosine"),
    "gan": dict(discriminator=0.5, discriminator_channels=(8, 16)),
    "tokens": dict(tokens=6, code_dim=2, residual=2),
}


def tiny(kind: type[VQVAE] = VQVAE, **changes: Any) -> VQVAE:
    """Build a model with the same initial weights at every call."""
    torch.manual_seed(0)
    return kind(VQVAEConfig(**(TINY | changes)))


def images(n: int = 6, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def batch(n: int = 6, progress: float = 1.0) -> Batch:
    return Batch(images(n), Noise.for_images(0, range(n)), progress=progress)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_and_vectors_decode_to_the_reconstruction(kind):
    model = tiny(**KINDS[kind]).eval()
    model.initialise([images(20, seed=1)])
    assert model.can("encode") and model.can("quantise") and model.can("reconstruct")
    codes = model.encode(images())
    assert codes.shape == (6, *model.latent_shape) and codes.dtype == torch.int64
    assert model.latent_shape == {"residual": (2, 2, 3), "tokens": (1, 6, 2)}.get(kind, (2, 2))
    assert model.codebook_size == (60 if kind == "fsq" else 16)
    rebuilt = model.reconstruct(images())
    torch.testing.assert_close(model.decode(codes), rebuilt)
    torch.testing.assert_close(model.decode(codes.int()), rebuilt)
    torch.testing.assert_close(model.decode(model.quantiser.decode(codes)), rebuilt)
    other = model.decode((codes + 1) % model.codebook_size)
    assert (other - rebuilt).abs().max() > 1e-4


def test_default_grid_of_codes():
    assert VQVAE(VQVAEConfig()).latent_shape == (8, 8)
    assert VQVAE(VQVAEConfig(channels=(32, 64), encoder_blocks=(1, 1), decoder_blocks=(1, 1))).latent_shape == (16, 16)


def test_what_decode_refuses():
    model = tiny().eval()
    codes = model.encode(images())
    for wrong in (codes + 16, codes - 16):
        with pytest.raises(ValueError, match="codes go from 0 to 15, got .*: they belong to another codec"):
            model.decode(wrong)
    with pytest.raises(ValueError, match=r"decode\(\) takes codes \(N, 2, 2\), got \(6, 4\)"):
        model.decode(codes.flatten(1))
    with pytest.raises(ValueError, match=r"vectors of shape \(N, 4, 2, 2\), got \(6, 2, 2\)"):
        model.decode(codes.float())
    assert model.decode(codes[:0]).shape == (0, 3, 16, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(size=20), "size 20 is not divisible by 8"),
        (dict(codebook_size=0), "a codebook needs at least 1 code, got codebook_size 0"),
        (dict(code_dim=0), "got code_dim 0"),
        (dict(quantiser="fsq", fsq_levels=(8, 1)), r"fsq needs at least 2 levels for each value, got \(8, 1\)"),
        (dict(quantiser="vq"), "quantiser must be 'ema', 'fsq' or 'cosine', got 'vq'"),
        (dict(gradient="gumbel"), "gradient must be 'straight-through' or 'rotation', got 'gumbel'"),
        (dict(quantiser="fsq", gradient="rotation"), "has no vector to rotate to: use gradient 'straight-through'"),
        (dict(residual=0), "residual must be at least 1 code per position, got 0"),
        (dict(residual=2, quantiser="cosine"), "residual 2 needs quantiser 'ema', got 'cosine'"),
        (dict(commitment=-1.0), "commitment must not be negative, got -1.0"),
        (dict(discriminator=1.0, discriminator_channels=(12,)), r"multiples of 8, got \(12,\)"),
        (dict(discriminator_start=2.0), "discriminator_start must be in"),
        (dict(encoder_blocks=(1,)), r"encoder_blocks needs one number for each of the 2 channels"),
    ],
)
def test_impossible_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        tiny(**changes)
    assert "\n" not in str(error.value)


def test_the_loss_is_the_error_and_the_commitment():
    model = tiny(commitment=0.5).train()
    loss, metrics = model(batch())
    z = model.encoder(images())
    vectors = model.quantiser.decode(model.encode(images()))
    mse = (model.decoder(vectors) - images()).square().mean()
    torch.testing.assert_close(metrics["mse"], mse)
    torch.testing.assert_close(metrics["commitment"], (z - vectors).square().mean())
    torch.testing.assert_close(loss, mse + 0.5 * metrics["commitment"])
    assert set(metrics) == {"mse", "commitment", "usage", "perplexity"}


def test_k_means_starts_the_codebook_near_the_encoder():
    model, raw = tiny(), tiny()
    model.initialise([images(20, seed=1), images(20, seed=2)])
    other = tiny()
    other.initialise([images(20, seed=1), images(20, seed=2)])
    assert torch.equal(model.quantiser.codebook, other.quantiser.codebook)
    assert model(batch())[1]["commitment"] < 0.5 * raw(batch())[1]["commitment"]


def test_lpips_joins_the_loss(monkeypatch):
    """LPIPS is replaced by a stand-in, because its weights are not available offline."""
    monkeypatch.setattr(
        "genmodels.nn.perceptual.load_lpips", lambda net, device: lambda a, b: (a - b).abs().mean((1, 2, 3))
    )
    plain, with_it = tiny()(batch())[0], tiny(lpips=0.5)(batch())
    torch.testing.assert_close(with_it[0], plain + 0.5 * with_it[1]["lpips"])


# ---- samples without a prior ----


def test_samples_are_draws_of_each_positions_codes():
    model = tiny().eval()
    with pytest.raises(ValueError, match="code frequencies are not known yet"):
        model.generate(1)
    model.initialise([images(40, seed=1)])
    seen = model.encode(images(40, seed=1))
    model.calibrate([images(40, seed=1)[:25], images(40, seed=1)[25:]])
    counts = torch.bincount(seen[:, 1, 0], minlength=16) / 40
    torch.testing.assert_close(model.frequencies.frequencies[2], counts)
    asked = {}
    model.decode = lambda codes: asked.setdefault("codes", codes)
    model.generate(400, seed=1, batch_size=400)
    drawn = torch.bincount(asked["codes"][:, 1, 0], minlength=16) / 400
    assert (drawn - counts).abs().max() < 0.08 and (drawn[counts == 0] == 0).all()


def test_low_temperature_takes_the_usual_code():
    model = tiny().eval()
    model.initialise([images(40, seed=1)])
    model.frequencies.fit([torch.tensor([[3, 1, 4, 15], [3, 1, 4, 15], [5, 9, 2, 6]])])
    usual = torch.tensor([[[3, 1], [4, 15]]])
    torch.testing.assert_close(model.generate(2, temperature=1e-3)[1:], model.decode(usual))
    for temperature in (0.0, -1.0):
        with pytest.raises(ValueError, match="temperature must be above 0"):
            model.generate(1, temperature=temperature)


# ---- the discriminator ----


def enable(model: VQVAE, turn: str) -> None:
    model.zero_grad()
    mine = {id(p) for p in model.parameters_for(turn)}
    for p in model.parameters():
        p.requires_grad_(id(p) in mine)


def test_one_turn_without_a_discriminator_and_two_with():
    assert tiny().turns == ("model",)
    model = tiny(**KINDS["gan"])
    assert model.turns == ("model", "discriminator") and tiny().turns == ("model",)
    owned = [p for turn in model.turns for p in model.parameters_for(turn)]
    assert len(owned) == len({id(p) for p in owned}) == len(list(model.parameters()))
    assert not any("discriminator" in name or "balance" in name for name in tiny().state_dict())


def test_each_turn_reaches_its_own_parameters_and_no_other():
    model = tiny(**KINDS["gan"]).train()
    model.balance.value.fill_(1.0)
    for turn in model.turns:
        model(batch(), "model")[0].backward()  # the first step, because layers that start at zero block gradients
        with torch.no_grad():
            for p in model.parameters_for("model"):
                p.add_(0 if p.grad is None else p.grad, alpha=-1e-2)
        enable(model, turn)
        model(batch(), turn)[0].backward()
        mine = {id(p) for p in model.parameters_for(turn)}
        for name, p in model.named_parameters():
            assert (p.grad is not None and bool((p.grad != 0).any())) == (id(p) in mine), f"{turn}: {name}"
        for p in model.parameters():
            p.requires_grad_(True)


def test_the_adversarial_loss_counts_only_after_its_start():
    model, plain = tiny(**KINDS["gan"], discriminator_start=0.3).train(), tiny().train()
    early, metrics = model(batch(progress=0.29))
    assert torch.equal(early, plain(batch())[0]) and "adversarial" not in metrics
    model.after_step()
    assert model.balance.value == 0
    # The discriminator is trained nevertheless.
    loss, seen = model(batch(progress=0.0), "discriminator")
    enable(model, "discriminator")
    model(batch(progress=0.0), "discriminator")[0].backward()
    assert all(p.grad.abs().sum() > 0 for p in model.discriminator.parameters())
    assert loss > 0 and set(seen) == {"real", "fake"}
    # In the first step the adaptive weight is 0; later it comes from the previous step.
    enable(model, "model")
    late, metrics = model(batch(progress=0.3))
    torch.testing.assert_close(late, plain(batch())[0], rtol=0.1, atol=0)
    assert metrics["adaptive_weight"] == 0
    model.after_step()
    assert model.balance.value > 0
    loss, metrics = model(batch(progress=0.3))
    expected = metrics["mse"] + 0.25 * metrics["commitment"]
    expected = expected + 0.5 * metrics["adaptive_weight"] * metrics["adversarial"]
    torch.testing.assert_close(loss, expected)


def test_the_second_turn_leaves_no_statistics():
    model = tiny(**KINDS["gan"]).train()
    model(batch(), "discriminator")
    assert model.quantiser.counts.sum() == 0 and model.quantiser.sums.abs().sum() == 0


def test_the_adaptive_weight_is_the_ratio_of_gradients():
    """d/dw of mean (w x - y)^2 and of -mean(c w x), in numbers."""
    kernel = torch.tensor([[2.0, -1.0]], requires_grad=True)
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    balance = AdaptiveWeight(2)
    expected = torch.zeros(2, 2)
    for row in x:  # two micro-batches
        out = kernel @ row
        balance.observe(out.square().sum(), -3 * out.sum(), kernel)
        expected[0] += 2 * (kernel.detach() @ row) * row
        expected[1] += -3 * row
    balance.commit()
    torch.testing.assert_close(balance.value, expected[0].norm() / expected[1].norm())
    assert balance.stash.abs().sum() == 0
    before = balance.value.clone()
    balance.commit()
    assert torch.equal(balance.value, before)
    balance.observe((kernel * 3).sum(), 0 * kernel.sum(), kernel)
    balance.commit()
    assert balance.value == 1e4


def test_it_is_measured_at_the_decoders_last_layer():
    model = tiny(**KINDS["gan"]).train()
    kernel = output_layer(model.decoder).weight
    decoded = model.decoder(model.quantiser.decode(model.encode(images())))
    (mse,) = torch.autograd.grad((decoded - images()).square().mean(), kernel, retain_graph=True)
    (adversarial,) = torch.autograd.grad(-model.discriminator(decoded).mean(), kernel)
    model(batch())
    model.after_step()
    torch.testing.assert_close(model.balance.value, mse.norm() / adversarial.norm(), rtol=1e-3, atol=0)


def test_hinge_losses_by_hand():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.5])
    assert discriminator_hinge(real, fake) == pytest.approx(0.5 * (0.5 / 2 + 1.5 / 2))
    assert generator_hinge(fake) == pytest.approx(0.75)


def test_a_logit_judges_a_patch_of_its_own_image():
    model = PatchDiscriminator((8, 16)).double()
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    logits = model(x)
    assert logits.shape == (2, 1, 8, 8)
    logits[0, 0, 0, 0].backward()
    assert x.grad[0].abs().sum() > 0 and x.grad[1].abs().sum() == 0


# ---- in the training loop ----


def run(output: Path, kind: type[VQVAE] = VQVAE, model: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Make a recipe of twenty steps on 16 px faces."""
    network = tiny(kind, **(model or {}))
    return fit(network, faces(size=16), recipe(output, size=16, model=network.config, **changes))


class Restarting(VQVAE):
    """Model with half of its codes dead at first; they are restarted in the first steps."""

    def initialise(self, images: Any) -> None:
        super().initialise(images)
        for module in self.quantiser.modules():
            if isinstance(module, EMACodebook):
                module.codebook[::2] = 1e3
                module.frequency[::2] = 0


@pytest.mark.parametrize("kind", ["residual", "gan", "cosine"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, kind: str) -> None:
    out = run(tmp_path / "run", Restarting, KINDS[kind], save_every=10)
    whole = tensors(out)
    (out / "checkpoints" / "step_00000020" / STATE).unlink()
    run(out, Restarting, KINDS[kind], save_every=10, resume=True)
    for name, values in tensors(out).items():
        for key, value in values.items():
            assert torch.equal(value, whole[name][key]), f"{name}: {key}"


@pytest.mark.parametrize("kind", ["ema", "gan"])
def test_micro_batches_change_nothing(tmp_path: Path, kind: str) -> None:
    one = run(tmp_path / "one", Restarting, KINDS[kind])
    four = run(tmp_path / "four", Restarting, KINDS[kind], accumulate=4)
    assert_equal(one, four, tolerance=1e-4)
    assert tensors(one)["model.safetensors"]["quantiser.codebook"].abs().max() < 100, "dead codes came back"


class Bad(VQVAE):
    """Model whose images are nan in the sixth step."""

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        bad = float("nan") if batch.step == 5 else 1.0
        return super().loss(Batch(batch.images * bad, batch.noise, batch.condition, batch.step, batch.progress), turn)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_is_not_finite_leaves_no_statistics(tmp_path: Path, kind: str) -> None:
    out = run(tmp_path / "run", Bad, KINDS[kind], log_every=10)
    assert [line["skipped"] for line in lines(out)] == [1, 1]
    for values in tensors(out).values():
        assert all(value.isfinite().all() for value in values.values())


def test_tokens_without_a_place_start_as_principal_components():
    """An untrained model quantises whitened PCA coordinates and decodes them linearly."""
    model = tiny(tokens=5, code_dim=2, codebook_size=64).eval()
    many = images(200, seed=1)
    model.initialise([many[:120], many[120:]])
    assert model.latent_shape == (1, 5)
    white = model.principal.encode(many)  # (N, 10)
    assert (white.std(0) - 1).abs().max() < 0.01
    book = model.quantiser.codebook
    nearest = torch.cdist(white.view(200, 5, 2), book).argmin(-1)  # neighbouring components share a code
    assert torch.equal(model.encode(many), nearest.unsqueeze(1))
    expected = model.principal.decode(book[nearest].flatten(1)).clamp(-1, 1)
    torch.testing.assert_close(model.reconstruct(many), expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="tokens must be at least 1"):
        tiny(tokens=0)
    with pytest.raises(ValueError, match="tokens 200 of 4 numbers are more values than an image has"):
        tiny(tokens=200)
