"""Grouped head attention: similarities, groups, the constraint, votes, and pruning."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import genmodels
from genmodels.autoregressive import Autoregressive, AutoregressiveConfig
from genmodels.cli import main
from genmodels.cli.info import head_groups
from genmodels.conditions import ConditionConfig
from genmodels.latent import Latent
from genmodels.nn.head_groups import FORMED, Groups, HeadGroupsConfig, grouped, groups_of, k_means, with_groups
from genmodels.nn.transformer import TransformerConfig
from genmodels.pruning import formed_groups, strongest, vote, without_heads
from genmodels.types import Batch, Noise
from genmodels.vqvae import VQVAE, VQVAEConfig

GROUPED = TransformerConfig(width=32, depth=2, heads=4, head_groups=HeadGroupsConfig(count=2))


def model(transformer: TransformerConfig = GROUPED, similar: bool = True, **more) -> Autoregressive:
    """A model whose heads 0 and 2, and 1 and 3, are nearly copies, or where no two heads are similar."""
    torch.manual_seed(0)
    made = Autoregressive(AutoregressiveConfig(size=8, levels=4, transformer=transformer, **more)).eval()
    with torch.no_grad():
        made.decoder.head.weight.normal_(std=0.2)
        for attention in grouped(made).values():
            if similar:
                rows = attention.qkv.weight.view(3, 4, 8, 32)
                rows[:, 2:] = rows[:, :2] + 0.002 * torch.randn(3, 2, 8, 32)
                columns = attention.out.weight.view(32, 4, 8)
                columns[:, 2:] = columns[:, :2] * torch.tensor([1.5, 0.5])[:, None]
    return made


def batch(made: Autoregressive, n: int = 4) -> Batch:
    images = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return Batch(images, Noise.for_images(0, range(n)))


def first(made: Autoregressive):
    return made.decoder.transformer.blocks[0].attention


def test_similarities_are_those_of_the_matrices_that_heads_compute() -> None:
    attention = first(model(similar=False))
    q, k, v = attention.qkv.weight.view(3, 4, 8, 32)
    out = attention.out.weight.view(32, 4, 8)
    looks = [(q[h].T @ k[h]).flatten() for h in range(4)]
    writes = [(out[:, h] @ v[h]).flatten() for h in range(4)]
    for i in range(4):
        for j in range(4):
            expected = sum(float(F.cosine_similarity(x[i], x[j], dim=0)) for x in (looks, writes)) / 2
            assert abs(float(groups_of(attention).similarity[i, j]) - expected) < 1e-5


def test_the_constraint_against_its_formula() -> None:
    """Heads as explicit vectors, whose centres can be computed."""
    vectors = F.normalize(torch.randn(5, 7, generator=torch.Generator().manual_seed(0)), dim=1)
    labels = torch.tensor([0, 0, 1, 2, 1])
    groups = Groups(vectors @ vectors.T, F.one_hot(labels).float())
    centres = F.normalize(torch.stack([vectors[labels == g].sum(0) for g in range(3)]), dim=1)
    own = torch.stack([1 - vectors[h] @ centres[labels[h]] for h in range(5)]).mean()
    apart = torch.stack([(centres[g] @ centres[f]) ** 2 for g, f in ((0, 1), (0, 2), (1, 2))]).mean()
    torch.testing.assert_close(groups.constraint(), own + apart)
    assert groups.heads() == [[0, 1], [2, 4], [3]]
    pairs = float(vectors[0] @ vectors[1] + vectors[2] @ vectors[4]) / 2
    assert abs(groups.cohesion() - pairs) < 1e-6


def test_k_means_finds_groups_and_leaves_none_empty() -> None:
    around = torch.eye(3)[[2, 0, 1, 2, 0, 0]] + 0.1 * torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    vectors = F.normalize(around, dim=1)
    member = k_means(vectors @ vectors.T, 3)
    assert Groups(vectors @ vectors.T, member).heads() == [[0, 3], [1, 4, 5], [2]]
    assert (k_means(torch.ones(4, 4), 3).sum(0) > 0).all()  # copies


def test_the_constraint_forms_groups_and_is_part_of_the_loss() -> None:
    made = model(similar=False).train()
    data = batch(made)
    loss, metrics = made.loss(data, "model")
    whole, both = made(data)
    assert {*both} - {*metrics} == {"heads/cohesion", "heads/constraint"} and abs(both["heads/cohesion"]) < 0.3
    torch.testing.assert_close(whole, loss + 2 * both["heads/constraint"])  # of two blocks
    optimizer = torch.optim.AdamW(made.parameters(), lr=3e-3)
    for _ in range(60):
        whole, metrics = made(data)
        optimizer.zero_grad()
        whole.backward()
        optimizer.step()
    assert metrics["heads/cohesion"] > 0.8 > FORMED
    assert made.eval()(data)[1].keys() == made.loss(data, "model")[1].keys()  # in training only


def test_plain_models_are_left_alone() -> None:
    plain = model(TransformerConfig(width=32, depth=1, heads=4)).train()
    loss, metrics = torch.ones(()), {"a": torch.zeros(())}
    assert with_groups(plain, loss, metrics) == (loss, metrics)
    with pytest.raises(ValueError, match="has no grouped heads to prune: train one with --model.transformer.head-gr"):
        formed_groups(plain)


def test_votes_go_to_the_head_with_the_largest_output() -> None:
    made = model()
    groups = formed_groups(made)
    votes = vote(made, groups, [batch(made)] * 3)
    for name, each in groups.items():
        assert each.heads() == [[0, 2], [1, 3]]
        assert votes[name].tolist() == [0, 3, 3, 0]  # 2 is 1.5 times 0, 3 is half of 1
        assert strongest(each, votes[name]) == [1, 2]
    assert strongest(Groups(torch.eye(4), F.one_hot(torch.tensor([0, 1, 0, 1])).float()), torch.ones(4)) == [0, 1]


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
def test_the_pruned_model_equals_the_masked_model(bias: bool, tmp_path: Path) -> None:
    config = TransformerConfig(**(vars(GROUPED) | {"bias": bias, "qk_norm": True, "mixers": ("attention", "mamba2")}))
    made = model(config, condition=ConditionConfig(classes=3))
    for parameter in made.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.02)
    masked, kept = copy.deepcopy(made), {name: [1, 2] for name in grouped(made)}
    for attention in grouped(masked).values():
        attention.out.weight.view(32, 4, 8)[:, [0, 3]] = 0.0
    pruned = without_heads(made, kept)
    data = batch(made)
    expected = masked.loss(data, "model")[0]
    assert (expected - made.loss(data, "model")[0]).abs() > 1e-4
    torch.testing.assert_close(pruned.loss(data, "model")[0], expected, atol=1e-6, rtol=0)
    assert torch.equal(pruned.generate(2, seed=3), masked.generate(2, seed=3))

    pruned.save_pretrained(tmp_path / "pruned")
    loaded = genmodels.load(tmp_path / "pruned")
    assert torch.equal(loaded.generate(2, seed=3), pruned.generate(2, seed=3))
    transformer = loaded.config.transformer
    assert (transformer.heads, transformer.head_dim, transformer.head_groups.count) == (2, 8, 0)
    assert first(loaded).qkv.weight.shape == (3 * 2 * 8, 32) and first(loaded).out.weight.shape == (32, 16)
    assert made.config.transformer.heads == 4 and first(made).heads == [4, 4, 4]  # not changed


def test_a_pruned_prior_of_a_codec_is_saved_with_its_config(tmp_path: Path) -> None:
    torch.manual_seed(0)
    networks = dict(size=16, patch=4, channels=(16,), encoder_blocks=(1,), decoder_blocks=(1,))
    codec = VQVAE(VQVAEConfig(codebook_size=8, code_dim=2, **networks))
    config = AutoregressiveConfig(size=16, codes=codec.latent_shape, codebook_size=8, transformer=GROUPED)
    made = Latent.over(codec, Autoregressive(config))
    pruned = without_heads(made, {name: [1, 2] for name in grouped(made)})
    assert [each.config.prior.model["transformer"]["heads"] for each in (made, pruned)] == [4, 2]
    pruned.save_pretrained(tmp_path)
    assert torch.equal(genmodels.load(tmp_path).generate(2, seed=3), pruned.eval().generate(2, seed=3))


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, run, out = model(), tmp_path / "run", tmp_path / "out"
    made.save_pretrained(run)
    files, images = tmp_path / "files", tmp_path / "images"
    files.mkdir()
    for i in range(40):
        Image.new("RGB", (8, 8), (6 * i, 90, 200)).save(files / f"{i}.png")
    assert main(["data", "pack", "folder", "--root", str(files), "--out", str(images), "--size", "8"]) == 0
    assert main(["info", str(run)]) == 0
    assert "0+2, 1+3;" in " ".join(capsys.readouterr().out.split())
    said = head_groups(made).splitlines()
    assert len(said) == 2 and said[0].startswith("decoder.transformer.blocks.0.attention: 0+2, 1+3; mean similarity")
    assert said[0].endswith("(formed)") and head_groups(model(similar=False)).endswith("(not formed: that needs 0.5)")
    arguments = ["prune", str(run), str(out), "--data", str(images), "--batches", "2", "--batch-size", "4"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "decoder.transformer.blocks.1.attention: 0+2 (0/2), 1+3 (2/0) votes; 1, 2 stay" in said
    small = genmodels.load(out)
    counts = [sum(p.numel() for p in each.parameters()) for each in (small, made)]
    assert f"{counts[0]:,} of {counts[1]:,} parameters remain" in said and counts[1] - counts[0] == 2 * 4 * 16 * 32
    assert main(arguments) == 1 and "is not an empty folder" in capsys.readouterr().err
    model(similar=False).save_pretrained(run)
    assert main(["prune", str(run), str(tmp_path / "other"), "--data", str(images)]) == 1
    said = capsys.readouterr().err
    assert "have not formed: the mean similarity in a group is" in said and "and 0.5 is needed" in said
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(head_groups=HeadGroupsConfig(count=4)), "head_groups: count must be 1 to heads - 1 = 3, got 4"),
        (dict(kv_heads=2), "head_groups: kv_heads 2 already shares keys and values between heads"),
        (dict(mixers=("mamba2",)), "head_groups: none of the mixers mamba2 has heads to group"),
        (dict(head_groups=HeadGroupsConfig(weight=2.0)), "head_groups: weight has no effect without count"),
        (dict(head_groups=HeadGroupsConfig(2, 0.0)), "head_groups: weight must be above 0, got 0.0"),
        (dict(head_width=3), "head_width must be an even number of channels, got 3"),
    ],
)
def test_settings_that_do_not_fit(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TransformerConfig(**(vars(GROUPED) | changes))
