"""Contract suite: tests that every family must pass."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import re
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.repocard import metadata_load
from PIL import Image

import genmodels
from genmodels import sampling
from genmodels.abilities import ABILITIES
from genmodels.base import Generator
from genmodels.conditions import Condition
from genmodels.data.conversations import IMAGE, Turn
from genmodels.evaluation.extractors import Extractor
from genmodels.evaluation.images import Images
from genmodels.evaluation.realism import most_realistic
from genmodels.pictures import to_uint8
from genmodels.saving import from_dict
from genmodels.types import Batch, Noise, mix_seed

SIZE = 32
TRANSFORMER = dict(width=16, depth=2, heads=2)
SMALL: dict[str, dict[str, Any]] = {
    "ae": dict(size=SIZE, channels=(16, 24), encoder_blocks=(1, 1), decoder_blocks=(1, 1), latent_dim=8),
    "vae": dict(size=SIZE, channels=(16, 24), encoder_blocks=(1, 1), decoder_blocks=(1, 1), latent_dim=8, mixture=2),
    "vqvae": dict(
        size=SIZE,
        patch=4,
        channels=(16, 24),
        encoder_blocks=(1, 1),
        decoder_blocks=(1, 1),
        codebook_size=32,
        code_dim=4,
    ),
    "kl": dict(size=16, channels=(8, 16, 16), groups=4),
    "tiny": dict(size=16, width=16, encoder_blocks=(0, 1, 1), decoder_blocks=(0, 1, 1)),
    "autoregressive": dict(size=4, levels=16, transformer=TRANSFORMER),
    "unet": dict(size=16, patch=2, channels=(16, 32), blocks=1, attention=(False, True), head=8, groups=8, gaussian=16),
}
SMALL["gan"] = dict(size=16, channels=(16, 16, 8), blocks=1, group=8, latent_dim=8, penalty_every=1)
SMALL["gan:dcgan"] = dict(
    size=16, network="dcgan", loss="non-saturating", r1=0.0, r2=0.0, channels=(16, 8), latent_dim=8
)
SMALL["dit"] = dict(size=16, patch=4, transformer=TRANSFORMER, gaussian=16)
SSM = TRANSFORMER | dict(ssm=dict(head=8, state=4, chunk=8))
SMALL["autoregressive:mamba2"] = dict(size=4, levels=16, transformer=SSM | dict(mixers=("mamba2",)))
SMALL["dit:hybrid"] = dict(size=16, patch=4, transformer=SSM | dict(mixers=("mamba", "mamba2"), depth=2))
SMALL["autoregressive:experts"] = dict(
    size=4, levels=16, transformer=TRANSFORMER | dict(experts=dict(count=4, hidden=16, shared=1, balance="loss"))
)
SMALL["dit:expert choice"] = dict(
    size=16, patch=4, transformer=TRANSFORMER | dict(experts=dict(count=4, hidden=16, choice="experts"))
)
SMALL["latent"] = dict(
    size=SIZE,
    codec=dict(family="vqvae", model=SMALL["vqvae"]),
    prior=dict(family="autoregressive", model=dict(size=SIZE, codes=(4, 4), codebook_size=32, transformer=TRANSFORMER)),
)
# Wide enough for logits beyond the margin of the hinge loss: without any, its gradient for the last bias is exactly 0.
DISCRIMINATOR = dict(size=16, discriminator=0.5, discriminator_channels=(32, 64))
SMALL["kl:discriminator"] = dict(channels=(8, 16), groups=4) | DISCRIMINATOR
SMALL["tiny:discriminator"] = dict(width=16, encoder_blocks=(0, 1), decoder_blocks=(0, 1)) | DISCRIMINATOR
MAP = SMALL["vae"] | dict(spatial=True, latent_dim=4)
DIFFUSION = SMALL["unet"] | dict(size=SIZE, latents=(4, 4, 4), patch=1)
SMALL["latent:unet"] = dict(size=SIZE, codec=dict(family="vae", model=MAP), prior=dict(family="unet", model=DIFFUSION))
SMALL["latent:unet over vectors"] = dict(
    size=SIZE, codec=dict(family="vqvae", model=SMALL["vqvae"]), prior=dict(family="unet", model=DIFFUSION)
)
SMALL["latent:gan"] = dict(
    size=SIZE,
    codec=dict(family="vae", model=MAP),
    prior=dict(family="gan", model=SMALL["gan"] | dict(size=SIZE, latents=(4, 4, 4), principal=8)),
)
SMALL["latent:dit"] = dict(
    size=SIZE,
    codec=dict(family="vae", model=MAP),
    prior=dict(family="dit", model=SMALL["dit"] | dict(size=SIZE, latents=(4, 4, 4), patch=1)),
)
SMALL["clip"] = dict(
    size=SIZE,
    width=16,
    conv=dict(channels=(16, 24), blocks=(1, 1)),
    text=dict(transformer=TRANSFORMER | dict(norm="affine", mlp="quick_gelu", bias=True, rotary=False)),
)
SMALL["clip:vit"] = SMALL["clip"] | dict(
    image="vit", loss="sigmoid", conv={}, vit=dict(transformer=SMALL["clip"]["text"]["transformer"])
)
SMALL["latent:multimodal"] = dict(
    size=SIZE,
    codec=dict(family="vqvae", model=SMALL["vqvae"]),
    prior=dict(
        family="multimodal",
        model=dict(size=SIZE, codes=(4, 4), codebook_size=32, lm=dict(transformer=TRANSFORMER, extra=32)),
    ),
)
SMALL["lm"] = dict(transformer=TRANSFORMER)
SMALL["lm:untied"] = dict(transformer=TRANSFORMER | dict(kv_heads=1), tied=False)
SMALL["llava"] = dict(size=SIZE, clip=SMALL["clip"], lm=SMALL["lm"], train="all")
SMALL["llava:vit"] = SMALL["llava"] | dict(clip=SMALL["clip:vit"])
"""Configurations that train in a second: one or more of each family."""


def test_every_family_is_here():
    priors = {small["prior"]["family"] for small in SMALL.values() if "prior" in small}
    assert {kind(name) for name in SMALL} | priors == set(genmodels.FAMILIES)


def kind(name: str) -> str:
    """Return the family of an entry of SMALL."""
    return name.partition(":")[0]


def faces(n: int, seed: int = 0, size: int = SIZE) -> torch.Tensor:
    """Make smooth random images (n, 3, size, size) with 8-bit values, which models can learn."""
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)
    return smooth.mul(255).round() / 127.5 - 1


def batch(model: Any, n: int = 8, seed: int = 0, progress: float = 1.0) -> Batch:
    images = faces(n, seed, model.config.size)
    condition = Condition()
    if model.can("tokenize"):
        condition = Condition(text=model.tokenize([f"a photo of {'no ' * i}face" for i in range(n)]))
    if model.can("converse"):
        turns = [(Turn(f"{IMAGE}\nIs this {'not ' * i}a face?", "Yes." if i % 2 else "No."),) for i in range(n)]
        condition = Condition(text=model.read_conversations(turns))
    return Batch(images, Noise.for_images(seed, range(n)), condition, step=3, progress=progress)


def make(family: str) -> Generator:
    """Return a model that was not trained yet. Each test gets a copy of its own."""
    return copy.deepcopy(made(family))


@cache
def made(family: str) -> Generator:
    torch.manual_seed(0)
    of = genmodels.family(kind(family))
    model = of(from_dict(of.Config, SMALL[family]))
    calibrate_codec(model)
    model.initialise([faces(24, seed=3, size=model.config.size)])
    return model


def calibrate_codec(model: Generator) -> None:
    """A codec inside is a trained one: it knows the scale of its latents."""
    for part in model.children():
        if isinstance(part, Generator) and part.can("encode"):
            part.calibrate([faces(40, seed=7, size=model.config.size)])


@pytest.fixture(params=list(SMALL))
def family(request) -> str:
    return request.param


@pytest.fixture
def model(family) -> Generator:
    """Return a model that was trained for a few steps, in eval mode. Each test gets a copy of its own."""
    return copy.deepcopy(trained(family))


@cache
def trained(family: str) -> Generator:
    model = make(family)
    train(model, steps=3)
    model.calibrate([faces(16, seed=seed, size=model.config.size) for seed in (1, 2)])
    return model.eval()


@pytest.fixture
def generator(model) -> Generator:
    """A model that samples images; the test is skipped for others."""
    if not model.can("sample"):
        pytest.skip("it does not sample images")
    return model


def quick(model: Generator) -> dict[str, int]:
    """Return options that shorten sampling, for tests that hold for any number of steps."""
    return {"steps": 4} if "steps" in {field.name for field in dataclasses.fields(model.options_class)} else {}


def train(model: Generator, steps: int, lr: float = 3e-3, only: str | None = None) -> list[float]:
    """Train on one fixed batch, every turn or only one, and return the losses of the last step."""
    model.train()
    turns = (only,) if only else model.turns
    optimisers = {turn: torch.optim.Adam(model.parameters_for(turn), lr) for turn in turns}
    losses = []
    for _ in range(steps):
        for turn in turns:
            loss, _ = model(batch(model), turn)
            if turn == turns[-1]:
                losses.append(loss.item())
            if lr > 0:
                optimisers[turn].zero_grad()
                loss.backward()
                optimisers[turn].step()
        model.after_step()
    return losses


def test_samples_are_images(generator):
    model = generator
    images = model.generate(3, seed=1)
    assert images.shape == (3, 3, model.config.size, model.config.size) and images.dtype == torch.float32
    assert images.min() >= -1 and images.max() <= 1
    assert (images[0] - images[1]).abs().max() > 1e-3, "two streams of noise gave one image"


def test_same_seed_same_images_whatever_the_batch_size(generator):
    model = generator
    whole = model.generate(5, seed=5, **quick(model))
    torch.testing.assert_close(model.generate(5, seed=5, batch_size=3, **quick(model)), whole, atol=1e-4, rtol=0)
    torch.testing.assert_close(model.generate(2, seed=5, **quick(model)), whole[:2], atol=1e-4, rtol=0)
    assert (model.generate(1, seed=6, **quick(model)) - whole[:1]).abs().max() > 1e-3


def test_sampling_leaves_the_global_random_state_and_the_mode_alone(generator):
    model = generator
    model.train()
    modes = [module.training for module in model.modules()]  # a codec inside stays in eval mode
    before = torch.get_rng_state()
    model.generate(2, **quick(model))
    assert torch.equal(before, torch.get_rng_state())
    assert model.training and modes == [module.training for module in model.modules()]


def test_loss_depends_on_the_batch_alone(model):
    """The same batch gives the same loss bit for bit, whatever the global random state."""
    first = model(batch(model), model.turns[0])[0]
    torch.manual_seed(123)
    assert torch.equal(first, model(batch(model), model.turns[0])[0])


def test_loss_and_metrics_are_finite_scalars(model):
    model.train()
    for turn in model.turns:
        loss, metrics = model(batch(model), turn)
        assert loss.shape == () and loss.requires_grad and torch.isfinite(loss)
        assert metrics
        for name, value in metrics.items():
            assert value.shape == () and not value.requires_grad and torch.isfinite(value), name


def test_gradients_reach_every_parameter_of_the_turn_and_no_other(family):
    model = make(family)
    train(model, steps=2)  # layers that start at zero block gradients at the very first step
    everything = {name: p for name, p in model.named_parameters() if p.requires_grad}  # a codec inside is frozen
    assert {id(p) for turn in model.turns for p in model.parameters_for(turn)} == {id(p) for p in everything.values()}
    for turn in model.turns:
        model.zero_grad(set_to_none=True)
        mine = {id(p) for p in model.parameters_for(turn)}
        for p in everything.values():
            p.requires_grad_(id(p) in mine)
        model(batch(model), turn)[0].backward()
        for name, p in everything.items():
            reached = p.grad is not None and bool((p.grad != 0).any())
            assert reached == (id(p) in mine), f"{turn}: {name}"


def test_steps_lower_the_loss_on_a_fixed_batch(family):
    """Training lowers the loss more than the same steps with learning rate 0, which only update the
    statistics of after_step. Turns are trained separately, because opposing turns need not win."""
    for turn in make(family).turns:
        still = train(make(family), steps=30, lr=0.0, only=turn)[-1]
        moved = train(make(family), steps=30, only=turn)[-1]
        assert moved < still - 0.1 * abs(still), (turn, still, moved)


def test_the_loss_is_a_mean_over_images(family):
    """The loss of a batch is the mean of the losses of its halves."""
    model = make(family)
    if model.whole_batch:
        pytest.skip("its loss compares the images of a batch with each other")
    train(model, steps=2)
    whole = batch(model)
    for turn in model.turns:
        halves = []
        for rows in (slice(0, 4), slice(4, 8)):
            noise = Noise(whole.noise.seeds[rows])
            half = Batch(whole.images[rows], noise, whole.condition[rows], whole.step, whole.progress)
            halves.append(model(half, turn)[0])
        fresh = Batch(whole.images, Noise(whole.noise.seeds), whole.condition, whole.step, whole.progress)
        torch.testing.assert_close(sum(halves) / 2, model(fresh, turn)[0], rtol=1e-5, atol=1e-6)


def test_save_load_same_samples(model, family, tmp_path):
    model.save_pretrained(tmp_path / "m")
    header = json.loads((tmp_path / "m" / "config.json").read_text())
    assert header["family"] == kind(family) and header["format"] == 2
    for loaded in (genmodels.load(tmp_path / "m"), type(model).from_pretrained(tmp_path / "m")):
        assert type(loaded) is type(model) and loaded.config == model.config and not loaded.training
        if model.can("sample"):
            options = quick(model)
            assert torch.equal(loaded.generate(3, seed=2, **options), model.generate(3, seed=2, **options))
        else:
            assert torch.equal(loaded(batch(loaded))[0], model(batch(model))[0])
    assert not list((tmp_path / "m").glob("*.pt")) and not list((tmp_path / "m").glob("*.bin")), "no pickle on disk"


def test_config_round_trip(family):
    config = make(family).config
    plain = json.loads(json.dumps(dataclasses.asdict(config)))
    assert from_dict(type(config), plain) == config
    with pytest.raises(ValueError, match="unknown setting 'colour'; known: .*size"):
        from_dict(type(config), {**plain, "colour": 1})


def test_unknown_options_are_refused_with_the_known_ones(generator):
    model = generator
    known = [f.name for f in dataclasses.fields(model.options_class)]
    with pytest.raises(ValueError, match=f"unknown sampling option 'temprature'.*{known[0]}"):
        model.generate(1, temprature=1.0)


def test_options_are_plain_json(generator):
    """Options contain no infinity or NaN, so evaluate() can write them as JSON."""
    assert json.dumps(dataclasses.asdict(generator.options()), allow_nan=False)


def test_n_below_one_is_refused(generator):
    model = generator
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        model.generate(0)


def test_damaged_folders_are_refused(model, family, tmp_path):
    model.save_pretrained(tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="model.safetensors: not the weights of this config"):
        genmodels.load(tmp_path / "m")
    weights.unlink()
    with pytest.raises(ValueError, match="model.safetensors is not"):
        genmodels.load(tmp_path / "m")
    config = tmp_path / "m" / "config.json"
    config.write_text(config.read_text().replace(f'"{kind(family)}"', '"nonsense"'))
    with pytest.raises(ValueError, match="unknown family 'nonsense'; known: ae"):
        genmodels.load(tmp_path / "m")
    config.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        genmodels.load(tmp_path / "m")
    with pytest.raises(ValueError, match="no such model folder"):
        genmodels.load(tmp_path / "elsewhere" / "deep")


def test_half_precision_samples(generator, tmp_path):
    """Close to the samples of full precision, and ordinary float32 tensors."""
    model = generator
    whole = model.generate(2, seed=1)
    assert not whole.requires_grad and not whole.is_inference()
    model.save_pretrained(tmp_path)
    half = genmodels.load(tmp_path).to(torch.bfloat16).generate(2, seed=1)  # a deep copy would share the codec
    assert half.dtype == torch.float32
    assert (half - whole).abs().mean() < 0.02


def test_the_best_of_candidates_is_the_same_for_every_batch_size(generator):
    """Each image has candidates of its own, and the most realistic one of them is kept."""
    model = generator
    size = model.config.size
    colours = Extractor("colours", lambda images: F.adaptive_avg_pool2d(images.float(), 4).flatten(1))  # (N, 48)
    best = most_realistic(2, Images(to_uint8(faces(24, size=size)), "real"), colours)
    drawn = [Noise.for_images(5, range(4), candidate=j) for j in range(2)]
    with torch.no_grad():
        each = np.stack([to_uint8(model.sample(noise, Condition(), model.options(**quick(model)))) for noise in drawn])
    assert len(np.unique(each.reshape(8, -1), axis=0)) == 8, "candidates must differ"
    scores = np.stack([best.score(candidates) for candidates in each])  # (2 candidates, 4 images)
    expected = each[scores.argmax(0), range(4)].astype(int)
    found = sampling.sample(model, 4, 5, batch_size=3, best=best, progress=False, **quick(model))
    assert np.abs(found - expected).max() <= 1
    alone = most_realistic(1, Images(found, "real"), colours)
    first = sampling.sample(model, 1, 5, best=alone, progress=False, **quick(model))[0]
    assert np.abs(first - each[0, 0].astype(int)).max() <= 1


def test_images_are_pictures_that_display_themselves(generator):
    model = generator
    pictures = model.images(2, seed=1)
    size = model.config.size
    assert [picture.size for picture in pictures] == [(size, size)] * 2
    expected = to_uint8(model.generate(2, seed=1))
    assert np.array_equal(np.asarray(pictures[1]), expected[1])
    grid = Image.open(io.BytesIO(pictures._repr_png_()))
    assert grid.size == (2 * (size + 2) + 2, size + 4)


def test_nothing_of_the_class_is_replaced_in_an_instance(model):
    """What depends on the instance is a property: no method or attribute of a class hides behind another."""
    ours = [kind for kind in type(model).__mro__ if kind.__module__.startswith("genmodels")]
    assert not set(vars(model)) & {name for kind in ours for name in vars(kind)}


def test_a_saved_model_has_a_card_for_the_hub(model, family, tmp_path):
    model.save_pretrained(tmp_path / "m")
    front = metadata_load(tmp_path / "m" / "README.md")
    assert front["library_name"] == "genmodels" and front["license"] and kind(family) in front["tags"]
    card = (tmp_path / "m" / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.S).group(1).replace("PATH_OR_HUB_ID", str(tmp_path / "m"))
    run: dict[str, Any] = {}
    exec(code.replace("generate(16", "generate(2"), run)  # not in the path, which may have numbers
    if model.can("sample"):
        assert run["images"].shape == (2, 3, model.config.size, model.config.size)
    if model.can("embed"):
        assert run["similarity"].shape == (4, 2)


# ---- abilities ----

DIRECTIONS = {"interpolate", "morph", "latent_directions"}
WALKS = {"inpaint", "interpolate", "morph", "edit", "trajectory"}
ABLE: dict[str, set[str]] = {
    "ae": {"encode", "reconstruct"} | DIRECTIONS,
    "vae": {"encode", "reconstruct", "bits_per_dim"} | DIRECTIONS,
    "vqvae": {"encode", "reconstruct", "quantise", "vectors", "resize"},
    "kl": {"encode", "reconstruct"} | DIRECTIONS,
    "tiny": {"encode", "reconstruct"} | DIRECTIONS,
    "autoregressive": {"inpaint", "bits_per_dim", "log_probability", "stages", "extend"},
    "gan": {"reconstruct", "invert"} | DIRECTIONS,
    "unet": WALKS | {"bits_per_dim", "denoising_error", "denoising_losses"},
    "dit": WALKS | {"bits_per_dim", "denoising_error", "denoising_losses", "stages"},
    "latent": {"prior", "reconstruct", "inpaint", "bits_per_token", "stages"},
    "latent:unet": {"prior", "reconstruct"} | WALKS,
    "latent:gan": {"prior", "reconstruct"} | DIRECTIONS,
    "latent:dit": {"prior", "reconstruct", "stages"} | WALKS,
    "clip": {"embed", "tokenize", "measure"},
    "clip:vit": {"embed", "tokenize", "measure"},
    "latent:multimodal": {"prior", "reconstruct", "bits_per_token", "tokenize", "converse", "answer", "measure"},
    "lm": {"converse", "complete", "measure"},
    "lm:untied": {"converse", "complete", "measure"},
    "llava": {"converse", "answer", "measure"},
    "llava:vit": {"converse", "answer", "measure"},
}
"""What each family can do besides sampling: the tests below must not pass because a model claims too little."""
ABLE["kl:discriminator"], ABLE["tiny:discriminator"] = ABLE["kl"], ABLE["tiny"]
ABLE["gan:dcgan"], ABLE["latent:unet over vectors"] = ABLE["gan"], ABLE["latent:unet"]
ABLE["autoregressive:mamba2"] = ABLE["autoregressive:experts"] = ABLE["autoregressive"]
ABLE["dit:hybrid"] = ABLE["dit:expert choice"] = ABLE["dit"]


def test_abilities_are_those_of_the_family(model, family):
    assert {row.name for row in ABILITIES if model.can(row.name)} == ABLE[family] | (
        {"sample"} if isinstance(model, Generator) else set()
    )
    with pytest.raises(ValueError, match="unknown ability 'inpant'; known: sample"):
        model.can("inpant")


def test_codec(model):
    if not model.can("encode"):
        return
    images = torch.cat([faces(16, seed=seed, size=model.config.size) for seed in (1, 2)])
    with torch.no_grad():
        latents = model.encode(images)
        assert latents.shape == (32, *model.latent_shape)
        if model.can("quantise"):
            assert latents.dtype == torch.int64 and latents.min() >= 0 and latents.max() < model.codebook_size
        else:
            per_channel = latents.transpose(0, 1).flatten(1)
            assert per_channel.mean(1).abs().max() < 1e-4 and (per_channel.std(1) - 1).abs().max() < 1e-3
        torch.testing.assert_close(model.decode(latents), model.reconstruct(images), atol=1e-4, rtol=0)


def test_reconstructs(model):
    if model.can("reconstruct"):
        with torch.no_grad():
            rebuilt = model.reconstruct(faces(4, size=model.config.size))
        assert rebuilt.shape == (4, 3, model.config.size, model.config.size) and rebuilt.abs().max() <= 1


def test_likelihood_is_repeatable_and_finite(model):
    if not model.can("bits_per_dim"):
        return
    assert isinstance(model.likelihood_kind.exact, bool)
    assert 2 <= model.likelihood_kind.levels <= 256
    images = faces(4, size=model.config.size)
    with torch.no_grad():
        bits = model.bits_per_dim(images, Noise.for_images(0, range(4)))
        assert bits.shape == (4,) and torch.isfinite(bits).all() and (bits > 0).all()
        alone = model.bits_per_dim(images[1:2], Noise.for_images(0, [1]))
    torch.testing.assert_close(alone[0], bits[1], rtol=1e-4, atol=1e-4)


def test_interpolation_ends_at_the_samples(model):
    if not model.can("interpolate"):
        return
    options = model.options(**quick(model))
    ends = [Noise([mix_seed(seed, 0)]) for seed in (1, 2)]
    with torch.no_grad():
        frames = model.interpolate(*ends, torch.linspace(0, 1, 5), options)
    assert frames.shape == (5, 3, model.config.size, model.config.size)
    torch.testing.assert_close(frames[:1], model.generate(1, seed=1, **quick(model)), atol=1e-4, rtol=0)
    torch.testing.assert_close(frames[-1:], model.generate(1, seed=2, **quick(model)), atol=1e-4, rtol=0)


def test_inpainting_keeps_what_is_known(model):
    if not model.can("inpaint"):
        return
    size = model.config.size
    options = model.options(**quick(model))
    images = model.generate(3, seed=4, **quick(model))  # which hold only what the model can express
    known = torch.zeros(size, size, dtype=torch.bool)
    known[: size // 2] = True

    def complete(seed: int) -> torch.Tensor:
        with torch.no_grad():
            return model.inpaint(images, known, Noise.for_images(seed, range(3)), Condition(), options)

    torch.testing.assert_close(complete(1)[..., known], images[..., known], atol=1e-6, rtol=0)
    assert torch.equal(complete(1), complete(1)) and (complete(1) - complete(2)).abs().max() > 1e-3
    with pytest.raises(ValueError, match="must be bool"):
        model.inpaint(images, known[1:], Noise.for_images(0, range(3)), Condition(), options)


def test_edits_and_shows_its_steps(model):
    size = model.config.size
    noise = Noise.for_images(1, range(2))
    options = model.options(**quick(model)) if model.can("sample") else None
    if model.can("edit"):
        with torch.no_grad():
            found = model.edit(faces(2, size=size), 0.5, noise, Condition(), options)
        assert found.shape == (2, 3, size, size) and found.abs().max() <= 1
    if model.can("trajectory"):
        with torch.no_grad():
            seen, expected = model.trajectory(Noise.for_images(1, range(2)), Condition(), options)
        assert seen.shape == expected.shape and seen.shape[1:] == (2, 3, size, size)
        sample = model.generate(2, seed=1, **quick(model))
        torch.testing.assert_close(seen[-1].clamp(-1, 1), sample, atol=1e-5, rtol=0)


def test_morphing_gives_images(model):
    if not model.can("morph"):
        return
    ends = faces(2, size=model.config.size)
    with torch.no_grad():
        frames = model.morph(ends[:1], ends[1:], torch.linspace(0, 1, 3), model.options(**quick(model)))
    assert frames.shape == (3, 3, model.config.size, model.config.size) and frames.isfinite().all()
