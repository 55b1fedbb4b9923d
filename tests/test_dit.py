"""Diffusion transformer: blocks against those of diffusers, initialisation, and input refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from test_two_commands import CODEC, PRIOR, QUICK, train

import genmodels
from genmodels.cli import main
from genmodels.conditions import Condition, ConditionConfig
from genmodels.dit import SIZES, Alignment, DiT, DiTConfig, Masking, resized, vanilla
from genmodels.exchange.dit import from_diffusers, to_diffusers
from genmodels.nn.transformer import TransformerConfig
from genmodels.training.setup import compile_blocks
from genmodels.types import Batch, Noise

BLOCKS = TransformerConfig(width=32, depth=2, heads=4)
THEIRS = dict(
    num_attention_heads=4,
    attention_head_dim=8,
    in_channels=4,
    out_channels=8,
    num_layers=3,
    sample_size=8,
    patch_size=2,
    num_embeds_ada_norm=10,
)


def shaken(module: torch.nn.Module, scale: float = 0.1) -> torch.nn.Module:
    """`module` with random weights, those that start at zero too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def small(**settings) -> DiT:
    torch.manual_seed(0)
    return shaken(DiT(DiTConfig(**(dict(size=16, patch=4, transformer=BLOCKS) | settings))))


def their_network(**settings):
    """Build a small network with the layout of facebook/DiT-XL-2-256.

    Its blocks share the time and label embeddings.
    """
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    network = shaken(DiTTransformer2DModel(**(THEIRS | settings)))
    for block in network.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(network.transformer_blocks[0].norm1.emb.state_dict())
    return network


@pytest.mark.parametrize("out_channels", [4, 8])
def test_weights_of_diffusers_give_the_same_output(out_channels):
    network = their_network(out_channels=out_channels)
    model = from_diffusers(network.config, network.state_dict(), 64)
    generator = torch.Generator().manual_seed(1)
    x, t = torch.randn(3, 4, 8, 8, generator=generator), torch.tensor([0.0, 400.0, 999.0])
    labels = torch.tensor([2, 9, -1])
    with torch.no_grad():
        found = model.predict(x, t, model.embed(Condition(labels=labels), 3, x.device))
        theirs = network(x, t, class_labels=torch.where(labels < 0, 10, labels)).sample
    assert found.shape[1] == out_channels == model.config.outputs  # the variance's channels too
    assert theirs.std() > 0.3  # random weights, and something comes out
    torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-4)


def test_weights_for_diffusers_give_the_same_output():
    model = DiT(vanilla(size=64, latents=(4, 8, 8), patch=2, transformer=BLOCKS, condition=ConditionConfig(classes=5)))
    shaken(model)
    network = to_diffusers(model)
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([20.0, 700.0])
    labels = torch.tensor([4, -1])
    with torch.no_grad():
        found = model.predict(x, t, model.embed(Condition(labels=labels), 2, x.device))
        theirs = network(x, t, class_labels=torch.where(labels < 0, 5, labels)).sample
    torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-4)
    again = from_diffusers(network.config, network.state_dict(), 64)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value)


def test_foreign_weights_that_do_not_fit_are_named():
    network = their_network()
    weights = network.state_dict()
    with pytest.raises(ValueError, match="unknown weights adapter.weight, extra"):
        from_diffusers(network.config, weights | {"extra": torch.ones(1), "adapter.weight": torch.ones(1)}, 64)
    with pytest.raises(ValueError, match="proj_out_1.weight is missing"):
        from_diffusers(network.config, {k: v for k, v in weights.items() if k != "proj_out_1.weight"}, 64)
    changed = weights | {"transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias": torch.zeros(32)}
    with pytest.raises(ValueError, match=r"linear_1.bias differs between blocks"):
        from_diffusers(network.config, changed, 64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(), "its blocks are not those of vanilla"),
        (dict(transformer=vanilla(transformer=BLOCKS).transformer), "it has no classes"),
    ],
)
def test_what_diffusers_cannot_represent_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        to_diffusers(small(latents=(4, 8, 8), patch=2, **settings))


@pytest.mark.parametrize("config", [DiTConfig(size=16, transformer=BLOCKS), vanilla(size=16, transformer=BLOCKS)])
def test_it_starts_as_the_identity_with_nothing_to_say(config):
    """adaLN-zero: no block changes its input, and the output is zero."""
    model = DiT(config).eval()
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([100.0, 900.0])
    with torch.no_grad():
        assert model.predict(x, t, None).abs().amax() == 0
        tokens = torch.randn(2, 64, 32)
        modulation = [tuple(type(pair)(*(torch.zeros(2, 1, 32),) * 3) for pair in _modulation(model))] * 2
        through = model.transformer(tokens, model.positions, modulation=modulation)
        torch.testing.assert_close(through, model.transformer.norm(tokens))


def _modulation(model: DiT):
    from genmodels.diffusion.stages import pairs

    return pairs(model.modulations[0](torch.zeros(1, 1, 32)))


def test_patches_are_tokens_and_come_back_in_their_places():
    """Changing one patch changes one token. With inactive blocks only its output changes."""
    model = DiT(DiTConfig(size=16, patch=4, transformer=BLOCKS)).eval()
    torch.nn.init.normal_(model.head.weight)
    x = torch.zeros(1, 3, 16, 16)
    y = x.clone()
    y[:, :, 4:8, 8:12] = torch.randn(3, 4, 4)
    with torch.no_grad():
        changed = model.predict(y, torch.tensor([1.0]), None) != model.predict(x, torch.tensor([1.0]), None)
    where = torch.zeros(16, 16, dtype=torch.bool)
    where[4:8, 8:12] = True
    assert torch.equal(changed[0].any(0), where)


@pytest.mark.parametrize(("name", "millions"), [("S", 33), ("B", 130), ("L", 458), ("XL", 675)])
def test_sizes_are_those_of_the_paper(name, millions):
    """Table 4 of arXiv 2212.09748: 33, 130, 458 and 675 million parameters with patch 2, learned
    variance and 1,000 classes."""
    with torch.device("meta"):
        model = DiT(vanilla(latents=(4, 32, 32), transformer=SIZES[name], condition=ConditionConfig(classes=1000)))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(patch=5), "patch must divide the sides of the input, got 5 for 16 x 16"),
        (dict(patch=0), "patch must divide"),
        (dict(transformer=TransformerConfig(width=24, heads=4)), "heads of a multiple of 4 .* got 6"),
        (
            dict(transformer=TransformerConfig(width=30, heads=3, rotary=False)),
            "tokens of a multiple of 4 channels, got 30",
        ),
        (dict(transformer=TransformerConfig(mixers=("mamba",)), process="meanflow"), "which mixer mamba lacks"),
        (dict(transformer=TransformerConfig(backend="flex"), process="meanflow"), "which backend flex lacks"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DiTConfig(**(dict(size=16, patch=4) | settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(masking=dict(keep=0.0)), "masking: keep must be in"),
        (dict(masking=dict(keep=0.5, mixers=2)), "masking: mixers must be fewer than the 2 blocks, got 2"),
        (dict(align=dict(features=4, after=3)), "align: after must be 1 to 2 blocks, got 3"),
        (dict(align=dict(features=4, after=1), process="meanflow"), "meanflow does so in parts"),
        (dict(align=dict(weight=-1)), "align: features and weight must not be negative"),
    ],
)
def test_masking_and_alignment_that_cannot_be_are_refused(settings, message):
    kinds = {"masking": Masking, "align": Alignment}
    with pytest.raises(ValueError, match=message):
        DiTConfig(
            size=16, patch=4, transformer=BLOCKS, **{k: kinds[k](**v) if k in kinds else v for k, v in settings.items()}
        )


def test_heads_that_groups_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="kv_heads 3 must divide heads 4"):
        TransformerConfig(width=32, heads=4, kv_heads=3)


# ---- masking ----


def test_masked_tokens_are_neither_seen_nor_asked_for_after_the_mixers():
    """Without mixers the loss depends on kept patches only. With one, dropped patches affect it."""
    for mixers, informed in ((0, False), (1, True)):
        model = small(masking=Masking(keep=0.25, mixers=mixers))
        batch = Batch(torch.zeros(1, 3, 16, 16), Noise([7]), progress=0.1)
        kept = model._kept(replace(batch, noise=Noise([7])))
        assert len(kept) == 4 and torch.equal(kept, kept.sort().values)
        signal = torch.tensor([300.0])
        dropped = next(i for i in range(16) if i not in kept.tolist())
        x = torch.zeros(1, 3, 16, 16)
        y = x.clone()
        y[:, :, 4 * (dropped // 4) : 4 * (dropped // 4) + 4, 4 * (dropped % 4) : 4 * (dropped % 4) + 4] = 1.0
        with torch.no_grad():
            one, other = (model.network(image, signal, None, kept)[0] for image in (x, y))
        assert torch.equal(one, other) is not informed
        where = torch.zeros(16, dtype=torch.bool).index_fill(0, kept, True).view(4, 4)
        where = where.repeat_interleave(4, 0).repeat_interleave(4, 1)
        assert (one[:, :, ~where] == 0).all() and (one[:, :, where] != 0).any()


def test_every_block_is_gone_through_once_however_many_mix():
    calls = []
    model = small(transformer=replace(BLOCKS, depth=4), masking=Masking(keep=0.5, mixers=3))
    for i, block in enumerate(model.transformer.blocks):
        block.register_forward_hook(lambda *_, i=i: calls.append(i))
    model.loss(Batch(torch.randn(2, 3, 16, 16), Noise([1, 2])), "model")
    assert calls == [0, 1, 2, 3]


def test_the_masked_loss_is_that_of_the_kept_patches():
    model = small(masking=Masking(keep=0.5, mixers=1, until=0.8))
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    seeds = [1, 2, 3, 4]
    kept = model._kept(Batch(images, Noise(seeds), progress=0.2))
    noise = Noise(seeds)
    noise.uniform(16)  # what chose them
    t, eps = model.process.draw(noise.uniform()).view(-1, 1, 1, 1), noise.normal(3, 16, 16)
    x_t = model.process.noisy(images, eps, t)
    found = model.network(x_t, model.process.time_input(t).view(-1), None, kept)[0]
    error = F.pixel_unshuffle((found - (eps - images)).square(), 4).flatten(2)[:, :, kept]
    loss, _ = model.loss(Batch(images, Noise(seeds), progress=0.2), "model")
    torch.testing.assert_close(loss, error.mean())
    assert model._kept(Batch(images, Noise(seeds), progress=0.9)) is None


# ---- alignment ----


def test_alignment_pulls_the_tokens_to_the_features_and_stops_early():
    torch.manual_seed(0)
    model = small(align=Alignment(features=6, after=1, weight=2.0, until=0.5))
    images, features = torch.randn(4, 3, 16, 16), torch.randn(4, 6)
    plain = small()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "projector" not in k})

    def batch(progress: float) -> Batch:
        return Batch(images, Noise.for_images(0, range(4)), progress=progress, features=features)

    alone = plain.loss(batch(0.1), "model")[0]
    loss, metrics = model.loss(batch(0.1), "model")
    torch.testing.assert_close(loss, alone + 2.0 * metrics["alignment"])
    assert 0 < metrics["alignment"] < 2
    torch.testing.assert_close(model.loss(batch(0.7), "model")[0], alone)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(30):
        loss, found = model.loss(batch(0.1), "model")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert found["alignment"] < 0.2 * metrics["alignment"]
    with pytest.raises(ValueError, match="aligned with features of the images, and the batch has none"):
        model.loss(Batch(images, Noise.for_images(0, range(4)), progress=0.1), "model")


# ---- other sizes ----


@pytest.mark.parametrize("blocks", [BLOCKS, vanilla(transformer=BLOCKS).transformer])
def test_positions_are_interpolated_when_asked_and_refused_otherwise(blocks):
    model = small(transformer=blocks)
    x, t = torch.randn(1, 3, 32, 32), torch.tensor([300.0])
    with pytest.raises(ValueError, match=r"trained on \(3, 16, 16\): use genmodels.dit.resized"):
        model.predict(x, t, None)
    larger = resized(model, 32)
    assert larger.config.grid == (8, 8) and larger.config.trained == (4, 4)
    assert larger.predict(x, t, None).shape == x.shape
    positions = larger.positions.unflatten(0, (8, 8))
    torch.testing.assert_close(positions[::2, ::2].flatten(0, 1).float(), model.positions.float())
    if model.position_embedding is not None:
        places = larger.position_embedding.unflatten(1, (8, 8))[:, ::2, ::2].flatten(1, 2)
        torch.testing.assert_close(places, model.position_embedding, rtol=1e-4, atol=1e-4)
    same = resized(larger, 16)
    with torch.no_grad():
        torch.testing.assert_close(same.predict(x[..., :16, :16], t, None), model.predict(x[..., :16, :16], t, None))
    with pytest.raises(ValueError, match="only a dit over pixels"):
        resized(small(gaussian=8), 32)


@pytest.mark.parametrize("mixer", ["attention", "mamba", "mamba2"])
def test_compiled_blocks_compute_the_same_and_leave_an_ordinary_model(mixer):
    model, graphs = small(transformer=replace(BLOCKS, mixers=(mixer,))), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    x, t = torch.randn(2, 3, 16, 16), torch.tensor([10.0, 900.0])
    names = list(model.state_dict())
    with torch.no_grad():
        plain = model.predict(x, t, None)
        compile_blocks(model, backend=backend)
        torch.testing.assert_close(model.predict(x, t, None), plain)
    assert len(graphs) == 1  # both blocks
    assert list(model.state_dict()) == names
    with pytest.raises(ValueError, match="this model has none: leave it out"):
        compile_blocks(torch.nn.Linear(2, 2))


# ---- the recipe ----


def test_aligned_with_an_extractor(data: list[str]) -> None:
    asked = ["--model.patch", "4", "--align", "faces", "--model.align.after", "1", "--model.masking.keep", "0.5"]
    asked += ["--model.masking.mixers", "0", "--steps", "4", "--output", "runs/dit"]
    assert train("dit", *data, *QUICK, *PRIOR, *asked) == 0
    assert genmodels.load("runs/dit").config.align.features > 0
    row = json.loads(Path("runs/dit/metrics.jsonl").read_text().splitlines()[-1])
    assert 0 < row["alignment"] < 2


def test_over_a_codec_and_over_pixels_with_either_optimiser(data: list[str]) -> None:
    assert train("vqvae", *data, *QUICK, *CODEC, "--steps", "4", "--output", "runs/vq") == 0
    asked = [
        "--codec",
        "runs/vq",
        "--model.patch",
        "1",
        "--model.condition.attributes",
        "Smiling",
        "--optim.name",
        "muon",
    ]
    assert train("dit", *data, *QUICK, *PRIOR, *asked, "--steps", "5", "--output", "runs/dit") == 0
    model = genmodels.load("runs/dit")
    assert model.family == "latent" and model.prior.family == "dit" and model.conditions.attributes == ("Smiling",)
    asked = ["--attributes", "Smiling=yes", "--guidance", "2", "--steps", "3"]
    assert main(["sample", "runs/dit", "--n", "2", *asked]) == 0
    assert main(["inpaint", "runs/dit", "faces/00.png", "--n", "2", "--steps", "3"]) == 0
    assert train("dit", "--output", "runs/dit", "--resume", "--steps", "8") == 0
    pixels = ["--model.patch", "4", "--model.gaussian", "16", "--steps", "4", "--output", "runs/pixels"]
    assert train("dit", *data, *QUICK, *PRIOR, *pixels) == 0
    assert genmodels.load("runs/pixels").generate(2, steps=2).shape == (2, 3, 16, 16)


def test_another_average_after_training(data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """At the trained width the average equals the model; widths out of range are refused."""
    small = [*QUICK, *PRIOR, "--model.patch", "4", "--model.gaussian", "16", "--steps", "32", "--output", "runs/dit"]
    assert train("dit", *data, *small, "--ema-snapshots", "8") == 0
    assert len(list(Path("runs/dit/ema").iterdir())) == 8
    assert main(["average", "runs/dit", "runs/same", "--ema", "0.1"]) == 0
    assert main(["average", "runs/dit", "runs/wider", "--ema", "0.15"]) == 0
    trained, same, wider = (genmodels.load(f"runs/{name}").state_dict() for name in ("dit", "same", "wider"))
    for name, value in trained.items():
        torch.testing.assert_close(same[name], value, rtol=1e-4, atol=1e-6)
    assert not torch.equal(wider["head.weight"], trained["head.weight"])
    assert main(["average", "runs/dit", "runs/early", "--at", "0.3"]) == 0  # the snapshot of step 8 of 32
    early, kept = genmodels.load("runs/early"), load_file("runs/dit/ema/step_00000008.safetensors")
    torch.testing.assert_close(early.state_dict()["head.weight"], kept["head.weight"])
    assert main(["sample", "runs/dit", "--n", "2", "--steps", "2", "--guide", "runs/early", "--guidance", "2"]) == 0
    stale = Path("runs/dit/ema/step_00000099.safetensors")
    stale.write_bytes(Path("runs/dit/ema/step_00000032.safetensors").read_bytes())
    assert train("dit", "--output", "runs/dit", "--resume", "--steps", "40") == 0
    assert not stale.exists() and Path("runs/dit/ema/step_00000040.safetensors").exists()
    capsys.readouterr()
    for arguments, message in (
        (["runs/dit", "runs/wider"], "runs/wider is not an empty folder"),
        (["runs/dit", "runs/x", "--ema", "0.01"], "no average of width 0.01 can be computed"),
        (["runs/dit", "runs/x", "--at", "0.01"], "the first snapshot in runs/dit/ema was taken at 10.0% of the run"),
        (["runs/dit/ema", "runs/x"], "it has no config.yaml"),
    ):
        assert main(["average", *arguments]) == 1
        assert message in capsys.readouterr().err
    assert train("dit", *data, *small, "--ema", "0", "--ema-snapshots", "8", "--output", "runs/y") > 0
    assert "needs an average" in capsys.readouterr().err
