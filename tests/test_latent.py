"""Latent: a frozen codec and a prior as one model; codecs of diffusers; latents computed once."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file, save_file
from test_contract import faces

import genmodels
from genmodels import sampling
from genmodels.autoregressive import Autoregressive, AutoregressiveConfig
from genmodels.codecs import load_codec
from genmodels.conditions import Condition, ConditionConfig
from genmodels.data.batches import BatchReader
from genmodels.data.latents import DONE, LATENTS, with_latents
from genmodels.hashing import weights_hash
from genmodels.latent import Latent
from genmodels.nn.transformer import TransformerConfig
from genmodels.pictures import to_uint8
from genmodels.training.fit import fit
from genmodels.types import Batch, Noise
from genmodels.vae import VAE, VAEConfig
from genmodels.vqvae import VQVAE, VQVAEConfig

NETWORKS: dict[str, Any] = dict(size=16, patch=2, channels=(16, 16), encoder_blocks=(1, 0), decoder_blocks=(1, 0))
SMALL = TransformerConfig(width=16, depth=1, heads=2)


def make_codec(seed: int = 0) -> VQVAE:
    torch.manual_seed(seed)
    codec = VQVAE(VQVAEConfig(**NETWORKS, codebook_size=16, code_dim=4))
    codec.initialise([faces(24, seed=3, size=16)])
    return codec.eval()


def make(codec: Any = None, attributes: tuple[str, ...] = ()) -> Latent:
    codec = codec or make_codec()
    config = AutoregressiveConfig(
        size=16,
        codes=codec.latent_shape,
        codebook_size=codec.codebook_size,
        condition=ConditionConfig(attributes),
        transformer=SMALL,
    )
    torch.manual_seed(1)
    return Latent.over(codec, Autoregressive(config))


def batch(n: int = 4, latents: torch.Tensor | None = None) -> Batch:
    return Batch(faces(n, size=16), Noise.for_images(0, range(n)), Condition(), 3, 0.5, latents)


# ---- one model of two ----


def test_the_codec_is_frozen_and_stays_in_eval_mode() -> None:
    model = make().train()
    assert model.prior.training and not any(module.training for module in model.codec.modules())
    assert not any(p.requires_grad for p in model.codec.parameters())
    own = {id(p) for p in model.parameters_for("model")}
    assert own == {id(p) for p in model.prior.parameters()}
    before = weights_hash(model.codec)
    loss, _ = model(batch(), "model")
    loss.backward()
    model.after_step()
    assert weights_hash(model.codec) == before == model.config.codec_weights


def test_a_copy_shares_the_codec_and_not_the_prior() -> None:
    model = make()
    twin = copy.deepcopy(model)
    assert twin.codec is model.codec and twin.prior is not model.prior
    assert twin.prior.decoder.start is not model.prior.decoder.start
    assert torch.equal(twin.generate(2), model.generate(2))


def test_the_loss_is_the_priors_on_the_codes() -> None:
    model = make()
    expected, _ = model.prior.loss(replace(batch(), images=model.codec.encode(batch().images)), "model")
    assert torch.equal(model(batch(), "model")[0], expected)
    codes = torch.randint(0, 16, (4, 4, 4), generator=torch.Generator().manual_seed(0))  # computed before
    given, _ = model.prior.loss(replace(batch(), images=codes), "model")
    assert torch.equal(model(batch(latents=codes), "model")[0], given)


def test_codes_are_those_of_full_precision_under_autocast() -> None:
    model = make()
    plain = model.codec.encode(faces(16, size=16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.encode(faces(16, size=16)), plain)


@pytest.mark.parametrize("principal", [False, True])
def test_a_model_in_half_precision_reconstructs_and_completes(principal: bool) -> None:
    torch.manual_seed(0)
    codec = VQVAE(VQVAEConfig(**NETWORKS, codebook_size=16, code_dim=4, principal=principal))
    codec.initialise([faces(24, seed=3, size=16)])
    model = make(codec.eval()).to(torch.bfloat16)
    images = to_uint8(faces(2, size=16))
    assert sampling.reconstruct(model, images).shape == images.shape
    known = np.arange(16)[:, None].repeat(16, 1) < 8
    completed = sampling.inpaint(model, images, known)
    assert np.abs(completed[:, 0, :8].astype(int) - images[:, :8]).max() <= 1  # bfloat16 has 8 bits


def test_a_saved_model_is_whole(tmp_path: Path) -> None:
    model = make(attributes=("Smiling", "Male")).eval()
    model.save_pretrained(tmp_path / "m")
    loaded = genmodels.load(tmp_path / "m")
    assert isinstance(loaded, Latent) and loaded.config == model.config
    assert weights_hash(loaded.codec) == loaded.config.codec_weights == model.config.codec_weights
    assert loaded.conditions.attributes == ("Smiling", "Male") and loaded.options_class is model.prior.Options
    assert torch.equal(loaded.generate(3, temperature=0.8), model.generate(3, temperature=0.8))
    images = faces(3, size=16)
    assert torch.equal(loaded.reconstruct(images), model.codec.reconstruct(images))
    assert "/" not in (tmp_path / "m" / "config.json").read_text(), "no path of this machine"


def test_what_it_can_do() -> None:
    model = make()
    assert model.can("prior") and model.prior.can("bits_per_token")
    assert model.can("reconstruct") and not model.can("quantise")
    bits = model.prior.bits_per_token(model.encode(faces(3, size=16)))
    assert bits.tolist() == pytest.approx([4.0] * 3, abs=1e-5)  # new prior: equal probabilities


def test_the_codec_sees_nothing_of_what_is_unknown() -> None:
    model = make().eval()
    torch.nn.init.normal_(model.prior.decoder.head.weight)
    images = faces(3, size=16)
    known = torch.arange(16).unsqueeze(1).expand(16, 16) < 9

    def complete(pictures: torch.Tensor) -> torch.Tensor:
        return model.inpaint(pictures, known, Noise.for_images(0, range(3)), Condition(), model.options())

    done = complete(images)
    assert torch.equal(done, complete(torch.where(known, images, -images)))
    assert torch.equal(done[..., :9, :], images[..., :9, :])
    # Nine known pixel rows contain two complete rows of codes, which are kept.
    seen: list[torch.Tensor] = []
    plain = model.prior.inpaint
    model.prior.inpaint = lambda codes, kept, *rest: seen.append(kept) or plain(codes, kept, *rest)
    complete(images)
    assert seen[0].tolist() == [[True] * 4] * 2 + [[False] * 4] * 2
    few = torch.arange(16).unsqueeze(1).expand(16, 16) < 3
    with pytest.raises(ValueError, match="covers 4 x 4 pixels: at least one such square must be known"):
        model.inpaint(images, few, Noise.for_images(0, range(3)), Condition(), model.options())


# ---- codecs ----


def test_codecs_that_cannot_be_used(tmp_path: Path) -> None:
    make_codec().save_pretrained(tmp_path / "vq")
    with pytest.raises(ValueError, match="--codec .*nowhere: no such folder; train a codec first"):
        load_codec(tmp_path / "nowhere", 16)
    with pytest.raises(ValueError, match="trained on images of 16 px, --size is 32: set --size 16"):
        load_codec(tmp_path / "vq", 32)
    assert isinstance(load_codec(tmp_path / "vq", 16, codes=True), VQVAE)
    VAE(VAEConfig(**NETWORKS, latent_dim=4)).save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match="the latents of this vae are not codes: give a vqvae"):
        load_codec(tmp_path / "vae", 16, codes=True)
    assert isinstance(load_codec(tmp_path / "vae", 16), VAE)
    make().save_pretrained(tmp_path / "prior")
    with pytest.raises(ValueError, match="latent is not a codec"):
        load_codec(tmp_path / "prior", 16)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is not a saved model"):
        load_codec(tmp_path / "empty", 16)
    (tmp_path / "vq" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="model.safetensors is not"):
        load_codec(tmp_path / "vq", 16)


def diffusers_vq(**settings: Any) -> Any:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    plain = dict(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=3,
        num_vq_embeddings=20,
    )
    network = diffusers.VQModel(**plain | settings).eval()
    torch.nn.init.normal_(network.quantize.embedding.weight, std=0.3)
    return network


def diffusers_kl() -> Any:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
    ).eval()


SETTINGS = [{}, {"norm_type": "spatial", "block_out_channels": (32, 32)}, {"lookup_from_codebook": True}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@torch.no_grad()
def test_against_diffusers_vqmodel(settings: dict[str, Any], tmp_path: Path) -> None:
    network = diffusers_vq(**settings)
    network.save_pretrained(tmp_path / "pipeline" / "vqvae")
    codec = load_codec(tmp_path / "pipeline", 16, codes=True)  # the layout of an LDMPipeline
    assert codec.can("encode") and codec.latent_shape == (8, 8) and codec.codebook_size == 20
    images = faces(3, size=16)
    codes = codec.encode(images)
    assert codes.shape == (3, 8, 8) and codes.unique().numel() > 3
    expected = network.decode(network.encode(images).latents).sample.clamp(-1, 1)
    torch.testing.assert_close(codec.decode(codes), expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="these are of another codec"):
        codec.decode(codes + 20)

    model = make(codec)
    model.save_pretrained(tmp_path / "latent")
    loaded = genmodels.load(tmp_path / "latent")
    assert torch.equal(loaded.generate(2), model.generate(2))
    assert weights_hash(loaded.codec) == model.config.codec_weights


@torch.no_grad()
def test_against_diffusers_autoencoderkl(tmp_path: Path) -> None:
    network = diffusers_kl()
    network.save_pretrained(tmp_path / "vae")
    codec = load_codec(tmp_path / "vae", 16)
    images = faces(12, size=16)
    with pytest.raises(ValueError, match=r"are unknown: call prepare\(images\)"):
        codec.encode(images)
    codec.prepare([images[:6], images[6:]])
    latents = codec.encode(images)
    assert latents.shape == (12, 4, 8, 8) == (12, *codec.latent_shape)
    flat = latents.transpose(0, 1).flatten(1)
    assert flat.mean(1).abs().max() < 1e-4 and (flat.std(1) - 1).abs().max() < 1e-3
    expected = network.decode(network.encode(images).latent_dist.mode()).sample.clamp(-1, 1)
    torch.testing.assert_close(codec.decode(latents), expected, atol=1e-5, rtol=0)
    assert not codec.can("quantise")
    with pytest.raises(ValueError, match="the latents of this AutoencoderKL are not codes"):
        load_codec(tmp_path / "vae", 16, codes=True)


def test_folders_of_diffusers_that_cannot_be_used(tmp_path: Path) -> None:
    diffusers_vq().save_pretrained(tmp_path / "vq")
    with pytest.raises(ValueError, match="downsamples by 2, which does not divide 15 px"):
        load_codec(tmp_path / "vq", 15)
    diffusers_vq(in_channels=1).save_pretrained(tmp_path / "grey")
    with pytest.raises(ValueError, match="images of 1 channels, not of 3"):
        load_codec(tmp_path / "grey", 16)
    config = tmp_path / "vq" / "config.json"
    whole = config.read_text()
    config.write_text(whole.replace("VQModel", "UNet2DModel"))
    with pytest.raises(ValueError, match="holds a diffusers UNet2DModel; a codec can be one of AutoencoderKL, "):
        load_codec(tmp_path / "vq", 16)
    config.write_text(whole)
    weights = tmp_path / "vq" / "diffusion_pytorch_model.safetensors"
    save_file({name: x for name, x in load_file(weights).items() if "quant_conv" not in name}, weights)
    with pytest.raises(ValueError, match="lacks weights of this VQModel, such as .*quant_conv"):
        load_codec(tmp_path / "vq", 16)
    weights.unlink()
    with pytest.raises(ValueError, match="does not hold the weights of this VQModel as safetensors"):
        load_codec(tmp_path / "vq", 16)
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="diffusers pipeline without an autoencoder in vae or vqvae/"):
        load_codec(tmp_path / "pipeline", 16)


# ---- codes computed once ----


def encoded(cache: Path, codec: VQVAE, flip: bool = True, data: Any = None) -> Any:
    data = data or tiny.faces(40, size=16)
    return with_latents(data, codec.encode, weights_hash(codec), cache, flip)


def test_codes_are_those_of_each_image_and_of_its_mirror_image(tmp_path: Path) -> None:
    codec = make_codec()
    data = encoded(tmp_path, codec)
    assert data.latents.shape == (40, 2, 4, 4)
    images = torch.from_numpy(data.images).permute(0, 3, 1, 2) / 127.5 - 1
    assert torch.equal(torch.from_numpy(data.latents[:, 0]).long(), codec.encode(images))
    assert torch.equal(torch.from_numpy(data.latents[:, 1]).long(), codec.encode(images.flip(3)))
    assert np.array_equal(data.split("valid").latents, data.latents[30:])
    train = data.split("train")
    (b,), (pixels,) = (BatchReader(d, 8, 0).read(5, 0.0) for d in (train, replace(train, latents=None)))
    assert torch.equal(b.latents.long(), codec.encode(pixels.images))
    assert b.images.shape == (0, 3, 16, 16)  # pixels that nobody looks at are not read
    assert encoded(tmp_path, codec, flip=False).latents.shape == (40, 1, 4, 4)
    with pytest.raises(ValueError, match="compute them too, or use --no-flip"):
        BatchReader(encoded(tmp_path, codec, flip=False), 8, 0, flip=True)


def test_codes_are_computed_once_and_never_taken_for_those_of_another_codec(tmp_path: Path) -> None:
    codec, calls = make_codec(), []
    plain = codec.encode
    codec.encode = lambda images: calls.append(len(images)) or plain(images)
    first = encoded(tmp_path, codec).latents
    assert sum(calls) == 80
    assert np.array_equal(encoded(tmp_path, codec).latents, first) and sum(calls) == 80
    other = encoded(tmp_path, make_codec(seed=5)).latents  # such as the same folder, trained again
    assert not np.array_equal(other, first)
    moved = encoded(tmp_path, codec, data=tiny.faces(40, size=16, seed=9)).latents
    assert not np.array_equal(moved, first) and sum(calls) == 160


def test_damaged_codes_are_computed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codec = make_codec()
    first = np.array(encoded(tmp_path, codec).latents)
    (place,) = tmp_path.glob("latents-*")
    (place / LATENTS).write_bytes((place / LATENTS).read_bytes()[:-4] + b"\x63\0\0\0")
    assert np.array_equal(encoded(tmp_path, codec).latents, first)
    assert "latents.npy is damaged" in capsys.readouterr().err
    (place / DONE).unlink()  # interrupted before it was finished
    (place / LATENTS).write_bytes(b"")
    assert np.array_equal(encoded(tmp_path, codec).latents, first)


# ---- the loop ----


def run(output: Path, model: Latent, data: Any, **changes: Any) -> Path:
    return fit(model, data, tiny.recipe(output, size=16, steps=12, batch_size=8, **changes))


def test_it_trains_on_computed_codes_as_on_images(tmp_path: Path) -> None:
    """Training on cached codes is bit-for-bit equal. The exported model contains the codec."""
    data = tiny.faces(40, size=16)
    codec = make_codec()
    plain = run(tmp_path / "plain", make(codec, ("Smiling",)), data)
    cached = run(tmp_path / "cached", make(codec, ("Smiling",)), encoded(tmp_path / "cache", codec, data=data))
    one, two = genmodels.load(plain), genmodels.load(cached)
    assert weights_hash(one) == weights_hash(two)
    assert weights_hash(one.codec) == weights_hash(codec)
    assert weights_hash(one.prior) != weights_hash(make(codec, ("Smiling",)).prior)
    (checkpoint,) = sorted((cached / "checkpoints").iterdir())[-1:]
    identity = json.loads((checkpoint / "state.json").read_text())["identity"]
    assert identity["model"]["codec_weights"] == weights_hash(codec)


def test_a_codec_from_python_is_not_forgotten(tmp_path: Path) -> None:
    """config.yaml of fit() with a Latent is not that of a model of pixels."""
    output = run(tmp_path / "r", make(), tiny.faces(40, size=16))
    settings = yaml.safe_load((output / "config.yaml").read_text())
    assert (settings["family"], settings["codec"]) == ("autoregressive", "in-memory")
    assert "codec: in-memory" in (output / "README.md").read_text()
    with pytest.raises(ValueError, match="give --codec"):
        load_codec(Path(settings["codec"]), 16)


def test_a_run_does_not_go_on_with_a_codec_that_has_changed(tmp_path: Path) -> None:
    data = tiny.faces(40, size=16)
    run(tmp_path / "r", make(make_codec()), data)
    with pytest.raises(ValueError, match="cannot resume .*model.codec_weights is '.*' here and '.*' in the checkpoint"):
        fit(
            make(make_codec(seed=5)),
            data,
            tiny.recipe(tmp_path / "r", size=16, steps=20, batch_size=8, resume=True),
        )


def test_attributes_that_the_data_does_not_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="noise has no attribute 'Beard'; known: Male, Smiling"):
        run(tmp_path / "r", make(attributes=("Beard",)), tiny.faces(40, size=16))


def test_a_prior_is_not_trained_without_its_codec(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="makes no images without that codec"):
        fit(make().prior, tiny.faces(40, size=16), tiny.recipe(tmp_path / "r", size=16))


def test_over_refuses_what_does_not_fit() -> None:
    codec = make_codec()
    with pytest.raises(ValueError, match="autoregressive is not a codec"):
        Latent.over(make().prior, make().prior)
    for changes, message in (
        (dict(codes=(4, 5), codebook_size=16), r"codes is \(4, 5\) and the codec has \(4, 4\)$"),
        (dict(codes=(4, 4), codebook_size=8), "codebook_size is 8 and the codec has 16$"),
        ({}, r"codes is None and the codec has \(4, 4\); codebook_size is None and the codec has 16$"),
    ):
        prior = Autoregressive(AutoregressiveConfig(size=16, transformer=SMALL, **changes))
        with pytest.raises(ValueError, match=message):
            Latent.over(codec, prior)
    with pytest.raises(ValueError, match="a vae cannot be trained on the latents of a codec"):
        Latent.over(codec, VAE(VAEConfig(**NETWORKS, latent_dim=4)))
    larger = Autoregressive(AutoregressiveConfig(size=32, codes=(4, 4), codebook_size=16, transformer=SMALL))
    with pytest.raises(ValueError, match="prior is for images of 32 px, the codec for 16 px"):
        Latent.over(codec, larger)


def test_labels_that_the_data_does_not_have_are_refused(tmp_path: Path) -> None:
    config = AutoregressiveConfig(size=16, condition=ConditionConfig(classes=3), transformer=SMALL)
    with pytest.raises(ValueError, match="noise has no labels to train 3 classes on"):
        fit(Autoregressive(config), tiny.faces(40, size=16), tiny.recipe(tmp_path / "r", size=16))


def test_latents_that_are_not_finite_are_refused_and_not_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--codec: the latents of images 0 to 39 are not finite"):
        with_latents(tiny.faces(40, size=16), lambda images: images / 0, "x", tmp_path)
    assert not list(tmp_path.rglob("*.npy")) and not list(tmp_path.rglob("*.json"))
