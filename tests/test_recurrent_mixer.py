"""The recurrent mixer of recurrence.py works wherever attention does; packed sequences and padding.

The tests run this file as a script in each of two processes: `test_recurrent_mixer.py OUTPUT`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from ranks import in_two_processes
from recurrence import Recurrence
from test_fit import assert_equal
from test_fsdp import SHARDED, InShards
from tiny import faces, recipe

from genmodels.autoregressive import Autoregressive, AutoregressiveConfig
from genmodels.dit import DiT, DiTConfig
from genmodels.nn import transformer
from genmodels.nn.conditioning import Embedded
from genmodels.nn.decoder import GridDecoder
from genmodels.nn.transformer import Transformer, TransformerConfig
from genmodels.training import fit as loop
from genmodels.training.fit import fit
from genmodels.training.optim import OptimConfig, build_optimizer

PATTERNS = [("recurrence",), ("attention", "recurrence"), ("attention",)]
RECURRENT = PATTERNS[:2]
RUNS = [(family, name) for family in ("autoregressive", "dit") for name in ("adamw", "muon")]
SHARDED_RUNS = [("autoregressive", "muon"), ("dit", "adamw")]


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(transformer.MIXERS, "recurrence", Recurrence)


def blocks(mixers=("recurrence",), width=16, depth=2, **settings) -> TransformerConfig:
    return TransformerConfig(width=width, depth=depth, heads=2, mixers=mixers, **settings)


def randomised(model: torch.nn.Module, std: float = 0.3) -> torch.nn.Module:
    """Weights large enough for every part to matter."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0 if parameter.ndim > 1 else 1.0, std, generator=generator)
    return model.eval()


def stack(mixers, causal=True, std=0.3, **settings) -> Transformer:
    return randomised(Transformer(blocks(mixers, **settings), causal=causal), std)


def tokens(n: int = 2, length: int = 18, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, length, 16, generator=torch.Generator().manual_seed(seed))


# ---- generation ----


@torch.no_grad()
@pytest.mark.parametrize("mixers", RECURRENT)
@pytest.mark.parametrize("known", [0, 7])
def test_cached_generation_equals_uncached(mixers, known):
    """The prefix is processed in one call, the other positions one by one."""
    decoder = randomised(GridDecoder(4, 5, 2, 8, blocks(mixers)))
    generator = torch.Generator().manual_seed(1)
    condition = Embedded(torch.randn(3, 16, generator=generator))
    uniform = torch.rand(3, 20, 2, generator=generator)
    prefix = torch.randint(0, 8, (3, known, 2), generator=generator)
    seen = []

    def choose(logits, uniform):
        seen.append(logits)
        return (logits.softmax(-1).cumsum(-1) < uniform[:, None]).sum(-1).clamp(max=7)

    drawn = decoder.generate(condition, uniform, choose, prefix)
    whole = decoder(drawn, condition)[:, known:]  # (N, T, S, V)
    assert torch.equal(drawn[:, :known], prefix) and whole.std() > 0.5
    torch.testing.assert_close(torch.stack(seen, 1).view_as(whole), whole, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("mixers", RECURRENT)
@pytest.mark.parametrize("pieces", [[18], [5, 1, 9, 3]])
def test_the_state_continues_over_pieces_of_any_length(mixers, pieces):
    model, x = stack(mixers), tokens()
    cache = model.make_cache(2, 18)
    torch.testing.assert_close(torch.cat([model(part, cache=cache) for part in x.split(pieces, 1)], 1), model(x))
    assert cache.length == 18


def test_the_state_has_a_constant_size():
    sizes = {}
    for mixers in PATTERNS:
        caches = [stack(mixers).make_cache(3, capacity) for capacity in (10, 1000)]
        sizes[mixers] = [sum(tensor.numel() for state in cache.states for tensor in state) for cache in caches]
    assert sizes["recurrence",] == [2 * 3 * 16] * 2
    assert sizes["attention", "recurrence"] == [3 * 16 + 2 * 3 * 16 * 10, 3 * 16 + 2 * 3 * 16 * 1000]


@torch.no_grad()
def test_only_a_cache_of_attention_can_be_rewound():
    for mixers in RECURRENT:
        cache = stack(mixers).make_cache(2, 18)
        with pytest.raises(
            ValueError, match="the state of mixer 'recurrence' keeps no earlier positions and cannot be"
        ):
            cache.rewind(0)
    model = stack(("attention",))
    cache = model.make_cache(2, 18)
    whole = model(tokens(), cache=cache)
    for length in (19, -1):
        with pytest.raises(ValueError, match=f"cannot rewind a cache of 18 positions to {length}"):
            cache.rewind(length)
    cache.rewind(7)
    torch.testing.assert_close(model(tokens()[:, 7:], cache=cache), whole[:, 7:], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_compiled_step_is_compiled_once():
    model, x, graphs = stack(("recurrence", "attention")), tokens(), []
    torch.compiler.reset()
    compiled = torch.compile(model, backend=lambda graph, _: graphs.append(graph) or graph.forward, fullgraph=True)
    cache = model.make_cache(2, 20)
    valid = torch.ones(2, 8, dtype=torch.bool)
    valid[1, :3] = False
    parts = [compiled(x[:, :8], cache=cache, valid=valid)]
    parts += [compiled(x[:, t : t + 1], cache=cache) for t in range(8, 18)]
    expected = model(x, valid=torch.cat([valid, torch.ones(2, 10, dtype=torch.bool)], 1))
    torch.testing.assert_close(torch.cat(parts, 1), expected, atol=1e-5, rtol=0)
    assert len(graphs) == 2, "one for the prefix, one for every step"


# ---- diffusion ----


@pytest.mark.parametrize("mixers", PATTERNS)
def test_the_first_patch_sees_the_last_and_the_last_the_first(mixers):
    model = randomised(DiT(DiTConfig(size=8, patch=4, transformer=blocks(mixers), gaussian=0)), std=0.1)
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    first, last = (..., slice(0, 4), slice(0, 4)), (..., slice(4, 8), slice(4, 8))

    def influence(source, target) -> float:
        out = model.predict(x, torch.full((1,), 0.5), None)
        (gradient,) = torch.autograd.grad(out[target].sum(), x)
        return gradient[source].abs().max().item()

    assert influence(last, first) > 1e-3 and influence(first, last) > 1e-3
    model.transformer = randomised(Transformer(blocks(mixers), causal=True), std=0.1)
    assert influence(last, first) == 0 and influence(first, last) > 1e-3


def test_a_mixer_that_is_causal_by_nature_is_refused(monkeypatch):
    monkeypatch.setattr(Recurrence, "bidirectional", False)
    Transformer(blocks(), causal=True)
    with pytest.raises(
        ValueError, match="Recurrence sees earlier tokens only and cannot be used in a transformer that"
    ):
        DiT(DiTConfig(size=8, transformer=blocks()))


# ---- training ----


def test_modules_declare_how_their_parameters_are_trained_and_initialised():
    model = Transformer(blocks(("attention", "recurrence"), width=256, depth=8), causal=True)
    parameters = dict(model.named_parameters())
    names = {id(parameter): name for name, parameter in parameters.items()}

    def groups(name: str) -> list[tuple[float, set[str]]]:
        optimizer = build_optimizer(model.parameters(), OptimConfig(name, weight_decay=0.3), model)
        return [(g["weight_decay"], {names[id(p)] for p in g["params"]}) for g in optimizer.param_groups]

    plain = {name for name in parameters if "norm" in name or "decay" in name}
    assert "blocks.1.recurrence.decay" in plain and parameters["blocks.1.recurrence.decay"].ndim == 2
    assert groups("adamw") == [(0.3, set(parameters) - plain), (0.0, plain)]
    assert groups("muon") == [(0.3, set(parameters) - plain), (0.0, plain)]
    for name, expected in {"inputs": 0.02, "out": 0.02 / 4}.items():  # sqrt(2 * 8) = 4
        assert abs(parameters[f"blocks.1.recurrence.{name}.weight"].std().item() / expected - 1) < 0.02
    assert parameters["blocks.1.recurrence.decay"][0, [0, -1]].tolist() == [-1.0, 3.0]


def test_muon_applies_weight_decay(monkeypatch):
    monkeypatch.setattr(Recurrence, "no_decay", lambda self: [self.out.weight])
    model = Transformer(blocks(), causal=True)
    with pytest.raises(ValueError, match=r"cannot be declared in both muon\(\) and no_decay\(\)"):
        build_optimizer(model.parameters(), OptimConfig("muon"), model)


def make(family: str) -> Autoregressive | DiT:
    torch.manual_seed(0)
    hybrid = blocks(("attention", "recurrence"), width=8, dropout=0.1)
    if family == "dit":
        return DiT(DiTConfig(size=4, patch=2, transformer=hybrid, gaussian=0))
    return Autoregressive(AutoregressiveConfig(size=4, levels=8, transformer=hybrid))


def train(output: Path, family: str, name: str, **settings) -> Path:
    """Train for six steps."""
    settings = {"steps": 6, "size": 4, "sample_every": 50, "optim": OptimConfig(name, schedule="constant")} | settings
    return fit(make(family), faces(size=4), recipe(output, **settings))


@pytest.mark.parametrize(("family", "name"), RUNS)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, family, name):
    whole = train(tmp_path / "whole", family, name)
    train(tmp_path / "parts", family, name, steps=3)
    parts = train(tmp_path / "parts", family, name, resume=True)
    assert_equal(whole, parts, step=6)


@pytest.mark.slow
def test_shards_train_to_what_one_process_does(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, *_: x)  # masks depend on the process
    in_two_processes(Path(__file__), tmp_path / "two", **SHARDED)
    for family, name in SHARDED_RUNS:
        one = train(tmp_path / "one" / f"{family}-{name}", family, name)
        assert_equal(one, tmp_path / "two" / f"{family}-{name}", tolerance=2e-4, step=6)


# ---- several sequences in a row, and padding ----

LENGTHS = [[5, 9, 4], [1, 11, 6]]
"""Lengths of the sequences in each row."""


@pytest.mark.parametrize("mixers", PATTERNS)
@pytest.mark.parametrize("causal", [True, False])
def test_packed_sequences_equal_separate_ones(mixers, causal):
    model, weight = stack(mixers, causal, std=0.15), tokens(seed=2)
    packed, separate = tokens().requires_grad_(), tokens().requires_grad_()
    starts = torch.zeros(2, 18, dtype=torch.bool)
    for row, lengths in enumerate(LENGTHS):
        starts[row, [0, lengths[0], lengths[0] + lengths[1]]] = True
    positions = torch.stack([torch.cat([torch.arange(length) for length in lengths]) for lengths in LENGTHS])
    out = model(packed, positions[..., None], starts=starts)  # positions (N, T, 1)
    rows = [
        [model(part) for part in row[None].split(lengths, 1)] for row, lengths in zip(separate, LENGTHS, strict=True)
    ]
    expected = torch.cat([torch.cat(row, 1) for row in rows])
    assert (out - model(packed, positions[..., None])).abs().max() > 0.1, "the sequences must matter"
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-6)
    of = [packed, *model.parameters()]
    gradients = torch.autograd.grad((out * weight).mean(), of, retain_graph=True)
    others = torch.autograd.grad((expected * weight).mean(), [separate, *model.parameters()])
    torch.testing.assert_close(gradients, others, atol=1e-6, rtol=1e-5)
    # Rotary positions are relative, so they do not have to restart with each sequence.
    torch.testing.assert_close(model(packed, starts=starts), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mixers", PATTERNS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_seen(mixers, causal, side):
    model, x = stack(mixers, causal), tokens()
    pad = slice(0, 5) if side == "left" else slice(13, 18)
    valid = torch.ones(2, 18, dtype=torch.bool)
    valid[1, pad] = False
    x[1, pad] = 1e3
    x.requires_grad_()
    out = model(x, valid=valid)
    assert out.isfinite().all()
    expected = model(x[1:, valid[1]], torch.arange(18)[valid[1]])
    torch.testing.assert_close(out[1:, valid[1]], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out[:1], model(x[:1]), atol=1e-6, rtol=1e-6)
    (gradient,) = torch.autograd.grad(out[:, valid[1]].square().mul(tokens()[:, valid[1]]).mean(), x, retain_graph=True)
    assert gradient[1, pad].abs().max() == 0 and gradient[1, valid[1]].abs().min(0).values.max() > 0
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), list(model.parameters())))


@torch.no_grad()
@pytest.mark.parametrize("mixers", PATTERNS)
def test_a_cache_remembers_sequences_and_padding(mixers):
    """Row 0 begins a new sequence at positions 4 and 13; row 1 is padded on the left."""
    model, x = stack(mixers), tokens()
    valid, starts = torch.ones(2, 18, dtype=torch.bool), torch.zeros(2, 18, dtype=torch.bool)
    valid[1, :5] = False
    starts[0, [4, 13]] = True
    whole = model(x, starts=starts, valid=valid)
    cache, outs = model.make_cache(2, 18), []
    for first, last in ((0, 3), (3, 8), (8, 9), (9, 12), (12, 15), (15, 18)):
        span = slice(first, last)
        given = {name: rows[:, span] for name, rows in (("starts", starts), ("valid", valid))}
        if not given["starts"].any() and given["valid"].all():
            given = {}
        outs.append(model(x[:, span], cache=cache, **given))
    torch.testing.assert_close(torch.cat(outs, 1), whole, atol=1e-5, rtol=0)
    if mixers == ("attention",):
        cache.rewind(6)
        rest = model(x[:, 6:], cache=cache, starts=starts[:, 6:])
        torch.testing.assert_close(rest, whole[:, 6:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("rows", [torch.ones(2, 17).bool(), torch.ones(18).bool(), torch.ones(2, 18)])
def test_rows_that_do_not_fit_are_refused(rows):
    for name in ("starts", "valid"):
        with pytest.raises(ValueError, match=rf"{name} must be bool \(N, 18\), got torch"):
            stack(("attention",))(tokens(), **{name: rows})


# ---- the config ----


def test_the_config_names_the_mixers(monkeypatch):
    with pytest.raises(ValueError, match="unknown mixer 'ssm'; known: attention, mamba, mamba2, recurrence"):
        blocks(("ssm",))
    for mixers in ((), ("attention", "recurrence", "attention")):
        with pytest.raises(ValueError, match=f"mixers must name 1 to 2 mixers, one per block, got {len(mixers)}"):
            blocks(mixers)
    model = stack(("attention", "recurrence"), depth=5)
    assert [block.kind for block in model.blocks] == ["attention", "recurrence"] * 2 + ["attention"]
    monkeypatch.delitem(transformer.MIXERS, "recurrence")
    (names, _) = get_args(get_type_hints(TransformerConfig)["mixers"])
    assert get_args(names) == tuple(transformer.MIXERS)
    assert get_args(get_type_hints(TransformerConfig)["mlp"]) == (*transformer.MLPS, "none")


if __name__ == "__main__":
    transformer.MIXERS["recurrence"] = Recurrence
    torch.nn.functional.dropout = lambda x, *_: x
    loop.train_step = InShards()
    for family, name in SHARDED_RUNS:
        train(Path(sys.argv[1]) / f"{family}-{name}", family, name)
