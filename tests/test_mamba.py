"""State-space mixers: against recurrences in float64, against transformers, and in a transformer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from genmodels.exchange.mamba import (
    config_of,
    from_mamba,
    mixer_from_transformers,
    mixer_to_transformers,
    settings_of,
    to_mamba,
)
from genmodels.nn.mamba import Mamba, Mamba2
from genmodels.nn.places import Places, number_sequences
from genmodels.nn.rope import grid_positions
from genmodels.nn.scan import selective_scan, short_convolution, ssd
from genmodels.nn.ssm import SCANS, SSMConfig, scan_key
from genmodels.nn.transformer import Transformer, TransformerConfig
from genmodels.saving import to_dict
from genmodels.training.optim import OptimConfig, build_optimizer

SMALL = dict(head=8, state=4, chunk=5)
PATTERNS = [("mamba",), ("mamba2",), ("attention", "mamba2", "mamba")]
ONE_SEQUENCE = torch.zeros(2, 37, dtype=torch.bool)
SEVERAL = ONE_SEQUENCE.clone()
SEVERAL[0, [0, 9]] = SEVERAL[1, [4, 5, 30]] = True


def settings(mixers, **more) -> SSMConfig:
    return SSMConfig(**(SMALL | more))


def stack(mixers, causal: bool = True, **more) -> Transformer:
    """Build a transformer with weights large enough for every part to matter."""
    config = TransformerConfig(width=16, depth=3, heads=2, mixers=mixers, ssm=settings(mixers, **more))
    model = Transformer(config, causal=causal)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0 if parameter.ndim > 1 else 1.0, 0.3, generator=generator)
    return model.double().eval()


def tokens(length: int = 18) -> Tensor:
    return torch.randn(2, length, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# ---- the recurrences, in float64 ----


def draw(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def assert_same(outputs, expected, inputs) -> None:
    """Compare outputs to 1e-10 and gradients to 1e-9."""
    for ours, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)
    ours, theirs = (torch.autograd.grad(y.sin().sum(), inputs, retain_graph=True) for y in (outputs[0], expected[0]))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


@pytest.mark.parametrize("starts", [ONE_SEQUENCE, SEVERAL])
@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_chunks_equal_the_recurrence_of_mamba2(starts, chunk):
    x, dt, a, b, c, h = draw((2, 37, 4, 3), (2, 37, 4), (4,), (2, 37, 2, 5), (2, 37, 2, 5), (2, 4, 3, 5))
    state, ys = h, []
    for t in range(37):
        state = state.masked_fill(starts[:, t, None, None, None], 0.0)
        bt, ct = (value[:, t].repeat_interleave(2, dim=1) for value in (b, c))
        state = (-dt[:, t] * a).exp()[..., None, None] * state
        state = state + torch.einsum("nh,nhp,nhs->nhps", dt[:, t], x[:, t], bt)
        ys.append(torch.einsum("nhps,nhs->nhp", state, ct))
    assert_same(
        ssd(x, dt, -a, b, c, h, number_sequences(starts, None), chunk), (torch.stack(ys, 1), state), (x, dt, a, b, c)
    )


@pytest.mark.parametrize("starts", [ONE_SEQUENCE, SEVERAL])
@pytest.mark.parametrize("cached", [1, 2**20])  # one row after the other, and all together
def test_blocks_equal_the_recurrence_of_mamba(starts, cached, monkeypatch):
    monkeypatch.setattr("genmodels.nn.scan.CACHED", cached)
    x, dt, a, b, c, h = draw((2, 37, 6), (2, 37, 6), (6, 5), (2, 37, 5), (2, 37, 5), (2, 6, 5))
    state, ys = h.detach(), []
    for t in range(37):
        state = state.masked_fill(starts[:, t, None, None], 0.0)
        state = (-dt[:, t, :, None] * a).exp() * state + torch.einsum("nd,ns->nds", dt[:, t] * x[:, t], b[:, t])
        ys.append(torch.einsum("nds,ns->nd", state, c[:, t]))
    result = selective_scan(x, dt, -a, b, c, h.detach(), starts)
    assert_same(result, (torch.stack(ys, 1), state), (x, dt, a, b, c))


@pytest.mark.parametrize("packed", [False, True])
def test_the_derivative_of_the_convolution_along_a_direction(packed):
    x, weight, before, dx, dweight = draw((2, 9, 4), (4, 3), (2, 2, 4), (2, 9, 4), (4, 3))
    sequences = number_sequences(torch.arange(9).expand(2, 9) == 4, None) if packed else None

    def convolution(x: Tensor, weight: Tensor) -> Tensor:
        return short_convolution(x, weight, None, before, sequences)

    _, derivative = torch.func.jvp(convolution, (x, weight), (dx, dweight))
    step = 1e-6
    after, earlier = (convolution(x + sign * dx, weight + sign * dweight) for sign in (step, -step))
    torch.testing.assert_close(derivative, (after - earlier) / (2 * step), atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("packed", [False, True])
def test_the_gradient_of_the_convolution_is_that_of_its_compiled_form(packed, monkeypatch):
    x, weight, before, gradient = draw((2, 9, 4), (4, 3), (2, 2, 4), (2, 9, 4))
    sequences = number_sequences(torch.arange(9).expand(2, 9) == 4, None) if packed else None
    found = []
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)  # noqa: B023
        y = short_convolution(x, weight, None, before, sequences)
        found.append((y, *torch.autograd.grad(y, (x, weight, before), gradient)))
    torch.testing.assert_close(*found, atol=1e-12, rtol=0)


def test_no_rows():
    x, dt, a, b, c, h = (
        torch.zeros(shape) for shape in ((0, 9, 4, 3), (0, 9, 4), (4,), (0, 9, 2, 5), (0, 9, 2, 5), (0, 4, 3, 5))
    )
    y, last = ssd(x, dt, a, b, c, h)
    assert y.shape == x.shape and last.shape == h.shape
    y, last = selective_scan(x[:, :, 0], dt[..., :3], torch.zeros(3, 5), b[:, :, 0], c[:, :, 0], h[:, 0])
    assert y.shape == (0, 9, 3) and last.shape == (0, 3, 5)


def test_large_steps_stay_finite():
    for mixer in ("mamba", "mamba2"):
        model = stack((mixer,))
        with torch.no_grad():
            for block in model.blocks:
                block.mixer.cores[0].dt_bias.add_(100.0)
        x = tokens().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
        y.float().square().sum().backward()
        assert y.isfinite().all() and x.grad is not None and x.grad.isfinite().all() and x.grad.abs().max() > 0


# ---- against transformers ----


@torch.no_grad()
def drawn(module: nn.Module) -> nn.Module:
    """Draw parameters large enough for every part to matter."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return module.eval()


def theirs_and_ours(kind: str):
    from transformers import Mamba2Config, MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    common = dict(hidden_size=32, state_size=6, expand=2, conv_kernel=4, use_bias=False, num_hidden_layers=1)
    if kind == "mamba":
        theirs = drawn(MambaMixer(MambaConfig(time_step_rank=3, **common), 0))
        ours = Mamba(config(kind, state=6, rank=3), True)
    else:
        sizes = dict(num_heads=8, head_dim=8, n_groups=2, chunk_size=16, layer_norm_epsilon=1e-5)
        theirs = drawn(Mamba2Mixer(Mamba2Config(**common, **sizes), 0))
        ours = Mamba2(config(kind, state=6, head=8, groups=2, chunk=8), True)
    ours.load_state_dict(mixer_from_transformers(theirs.state_dict(), kind))
    same = mixer_to_transformers(ours.state_dict(), kind)
    assert all(torch.equal(same.pop(name), value) for name, value in theirs.state_dict().items()) and not same
    return theirs, ours.eval()


def config(kind: str, **ssm) -> TransformerConfig:
    return TransformerConfig(width=32, depth=1, heads=2, mixers=(kind,), ssm=SSMConfig(**ssm))


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_against_transformers(kind):
    """Outputs to 1e-5, gradients to 1e-4."""
    theirs, ours = theirs_and_ours(kind)
    x = torch.randn(2, 37, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    y, expected = ours(x, Places(torch.arange(37))), theirs(x)
    assert expected.std() > 0.2
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(*(torch.autograd.grad(out.sum(), x)[0] for out in (y, expected)), atol=1e-4, rtol=0)


def whole_model(kind: str, **more):
    from transformers import Mamba2Config, Mamba2Model, MambaConfig, MambaModel

    common = dict(hidden_size=32, vocab_size=50, state_size=6, num_hidden_layers=2, use_bias=True, **more)
    if kind == "mamba":
        return drawn(MambaModel(MambaConfig(time_step_rank=3, **common)))
    sizes = dict(num_heads=8, head_dim=8, n_groups=2, chunk_size=16)
    return drawn(Mamba2Model(Mamba2Config(**common, **sizes)))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_whole_models_of_transformers(kind):
    """Outputs to 1e-5, whole and in pieces (theirs token by token: MambaModel ignores its state when
    several are fed), and the way back."""
    theirs = whole_model(kind)
    ours = Transformer(config_of(theirs.config), causal=True).eval()
    ours.load_state_dict(from_mamba(theirs.state_dict()))
    ids = torch.randint(0, 50, (2, 21), generator=torch.Generator().manual_seed(1))
    x = theirs.embeddings(ids)
    expected = theirs(ids).last_hidden_state
    torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=0)
    cache, before = ours.make_cache(2, 21), None
    pieces = torch.cat([ours(part, cache=cache) for part in x.split([8, 1, 12], 1)], 1)
    torch.testing.assert_close(pieces, expected, atol=1e-5, rtol=0)
    for t in range(6):
        step = theirs(ids[:, t : t + 1], cache_params=before, use_cache=True)
        before = step.cache_params
        torch.testing.assert_close(pieces[:, t : t + 1], step.last_hidden_state, atol=1e-5, rtol=0)

    back = type(theirs)(type(theirs.config)(vocab_size=50, **settings_of(ours.config))).eval()
    back.load_state_dict(to_mamba(ours.state_dict(), ours.config) | {"embeddings.weight": theirs.embeddings.weight})
    assert torch.equal(back(ids).last_hidden_state, expected)


def test_a_convolution_without_a_bias_has_one_of_0_here():
    theirs = whole_model("mamba", use_conv_bias=False)
    ours = Transformer(config_of(theirs.config), causal=True).eval()
    ours.load_state_dict(from_mamba(theirs.state_dict()))
    x = torch.randn(2, 9, 32)
    torch.testing.assert_close(ours(x), theirs(inputs_embeds=x).last_hidden_state, atol=1e-5, rtol=0)


def test_what_has_no_counterpart_in_transformers():
    theirs = whole_model("mamba2")
    state = theirs.state_dict()
    for change, words in (
        ({"layers.0.mixer.extra": state["norm_f.weight"]}, "no place for extra"),
        ({"head.weight": state["norm_f.weight"]}, "no place for head.weight"),
    ):
        with pytest.raises(ValueError, match=words):
            from_mamba(state | change)
    with pytest.raises(ValueError, match="not the weights of a mamba2 mixer: D is missing"):
        from_mamba({name: value for name, value in state.items() if name != "layers.1.mixer.D"})
    theirs.config.time_step_limit = (0.0, 0.1)
    with pytest.raises(ValueError, match="time_step_limit .* steps are not clamped here"):
        config_of(theirs.config)
    for changes, words in (
        (dict(mixers=("mamba", "mamba2")), "its mixers are mamba, mamba2; its blocks have an MLP"),
        (dict(mixers=("attention",), mlp="none", norm="layer"), "its mixers are attention; its norm is layer"),
    ):
        with pytest.raises(ValueError, match=words):
            settings_of(TransformerConfig(**changes))
    mixer = Mamba2(config("mamba2", state=6, head=8, separate=True), False)
    with pytest.raises(ValueError, match="of a causal mamba2 mixer: cores.1.conv has no counterpart there"):
        mixer_to_transformers(mixer.state_dict(), "mamba2")
    with pytest.raises(ValueError, match="hidden and experts are settings of an MLP, and mlp is none"):
        TransformerConfig(mlp="none", hidden=64)


@pytest.mark.parametrize("causal", [True, False])
def test_blocks_without_an_mlp(causal):
    plain = Transformer(TransformerConfig(width=16, depth=2, heads=2, mlp="none"), causal=causal)
    assert {name.split(".")[2] for name in plain.state_dict() if "blocks" in name} == {"attention", "attention_norm"}
    x, block = torch.randn(2, 5, 16), plain.blocks[0]
    places = plain.places(torch.arange(5))
    torch.testing.assert_close(block(x, places), x + block.mixer(block.attention_norm(x), places))


# ---- in a transformer ----


@torch.no_grad()
@pytest.mark.parametrize("mixers", PATTERNS)
def test_pieces_of_any_length_equal_the_whole(mixers):
    """With and without sequences and padding, at the edges of which pieces begin and end."""
    model, x = stack(mixers), tokens()
    starts, valid = torch.zeros(2, 18, dtype=torch.bool), torch.ones(2, 18, dtype=torch.bool)
    starts[0, 7] = starts[1, 3] = starts[1, 11] = True
    valid[0, [0, 2, 8]] = valid[1, [5, 11]] = False  # in row 1, the third sequence begins at padding
    whole = model(x)
    packed = model(x, starts=starts, valid=valid)
    assert (packed - whole).abs().max() > 0.1
    for lengths in ([18], [5, 1, 9, 3], [1] * 18, [3, 8, 7]):
        cache, padded = model.make_cache(2, 18), model.make_cache(2, 18)
        parts = [part.split(lengths, 1) for part in (x, starts, valid)]
        pieces = torch.cat([model(part, cache=cache) for part in parts[0]], 1)
        torch.testing.assert_close(pieces, whole, atol=1e-5, rtol=0)
        pieces = torch.cat([model(p, cache=padded, starts=s, valid=v) for p, s, v in zip(*parts, strict=True)], 1)
        torch.testing.assert_close(pieces[valid], packed[valid], atol=1e-5, rtol=0)
    for row in range(2):  # each sequence alone
        number = starts[row].cumsum(0)
        for k in number.unique():
            own = ((number == k) & valid[row]).nonzero()[:, 0]
            alone = model(x[row : row + 1, own], positions=own)
            torch.testing.assert_close(packed[row : row + 1, own], alone, atol=1e-5, rtol=0)


def test_the_state_has_a_constant_size_and_cannot_be_rewound():
    model = stack(("mamba2",))
    sizes = [
        [tensor.numel() for state in model.make_cache(2, capacity).states for tensor in state]
        for capacity in (10, 1000)
    ]
    assert sizes[0] == sizes[1] == [2 * 3 * (32 + 8), 2 * 32 * 4] * 3
    with pytest.raises(ValueError, match="the state of mixer 'mamba2' keeps no earlier positions and cannot be"):
        model.make_cache(2, 10).rewind(0)
    with pytest.raises(ValueError, match="a cache needs a causal transformer"):
        stack(("mamba2",), causal=False).make_cache(2, 10)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("mixers", PATTERNS)
def test_without_causality_the_order_of_a_grid_comes_from_positions(mixers, separate):
    model = stack(mixers, causal=False, separate=separate, scans=("column", "zigzag"))
    grid, x = grid_positions(3, 6), tokens().requires_grad_()
    shuffled = torch.randperm(18, generator=torch.Generator().manual_seed(2))
    y = model(x, grid)
    torch.testing.assert_close(model(x[:, shuffled], grid[shuffled]), y[:, shuffled], atol=1e-5, rtol=0)
    for source, target in ((0, 17), (17, 0)):
        (gradient,) = torch.autograd.grad(y[:, source].sum(), x, retain_graph=True)
        assert gradient[:, target].abs().max() > 1e-4
    starts = torch.zeros(2, 18, dtype=torch.bool)
    starts[:, 9] = True
    valid = torch.ones(2, 18, dtype=torch.bool)
    valid[:, 4] = False
    packed = model(x, grid, starts=starts, valid=valid)
    own = [k for k in range(9) if k != 4]
    torch.testing.assert_close(packed[:, own], model(x[:, own], grid[own]), atol=1e-5, rtol=0)
    torch.testing.assert_close(packed[:, 9:], model(x[:, 9:], grid[9:]), atol=1e-5, rtol=0)


def test_orders_of_a_grid():
    orders = {scan: scan_key(grid_positions(2, 3), scan).argsort().tolist() for scan in ("row", "column", "zigzag")}
    assert orders == {"row": [0, 1, 2, 3, 4, 5], "column": [0, 3, 1, 4, 2, 5], "zigzag": [0, 1, 2, 5, 4, 3]}


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("scale", [1 / 3, 0.5, 2.0])
def test_interpolated_positions_have_the_same_order(scan, scale):
    grid = grid_positions(8, 8)
    orders = [scan_key(positions, scan).argsort() for positions in (grid, grid * scale)]
    torch.testing.assert_close(*orders, rtol=0, atol=0)
    assert scan_key(grid[:1] * scale, scan).shape == (1,)


def test_first_values_and_optimisers():
    mixer = stack(("mamba2",)).blocks[0].mixer
    model = Transformer(
        TransformerConfig(width=16, depth=2, heads=2, mixers=("mamba", "mamba2"), ssm=settings(())), causal=True
    )
    for block in model.blocks:
        core = block.mixer.cores[0]
        steps = torch.nn.functional.softplus(core.dt_bias)
        assert steps.min() > 0.99e-3 and steps.max() < 1.01e-1 and (core.skip == 1).all()
    assert (model.blocks[0].mixer.cores[0].log_a.exp()[3] - torch.arange(1.0, 5.0)).abs().max() < 1e-5
    optimizer = build_optimizer(model.parameters(), OptimConfig(name="muon", weight_decay=0.1), model)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    cores = [p for block in model.blocks for p in block.mixer.cores[0].parameters()]
    kept = [p for block in model.blocks for p in block.mixer.cores[0].undecayed()]
    assert not decayed & {id(p) for p in kept} and len(kept) == 5 and len(cores) == 12
    assert {id(p) for p in mixer.muon()} == {id(mixer.inputs.weight), id(mixer.out.weight)}


def test_settings():
    assert "ssm" not in to_dict(TransformerConfig()) and "ssm" in to_dict(TransformerConfig(mixers=("mamba2",)))
    for more, words in (
        (dict(ssm=SSMConfig(state=8)), "these settings apply to the mixers mamba and mamba2 only"),
        (dict(mixers=("mamba2",), width=48), "head must divide expand x width = 96"),
        (dict(mixers=("mamba2",), ssm=SSMConfig(groups=3)), "groups the number of heads; got head 64 and groups 3"),
        (dict(mixers=("mamba",) * 7), "mixers must name 1 to 6 mixers, one per block, got 7"),
    ):
        with pytest.raises(ValueError, match=words):
            TransformerConfig(**more)
    for more, words in (
        (dict(chunk=0), "chunk must be at least 1"),
        (dict(scans=("spiral",)), "scans must be some of"),
    ):
        with pytest.raises(ValueError, match=words):
            SSMConfig(**more)
