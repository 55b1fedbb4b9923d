"""Mixture of experts: against loops over tokens, its balance, its optimisers and its costs."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from test_contract import TRANSFORMER
from test_fit import lines
from tiny import faces, recipe
from torch import Tensor

from genmodels.cli.info import describe
from genmodels.dit import DiT, DiTConfig
from genmodels.nn import recompute
from genmodels.nn.experts import Experts, ExpertsConfig, active_parameters
from genmodels.nn.layers import MLPS, SwiGLU
from genmodels.nn.operations import counting
from genmodels.nn.router import commit, routers_of, with_balance
from genmodels.nn.transformer import Transformer, TransformerConfig
from genmodels.saving import from_dict, to_dict
from genmodels.training.fit import fit
from genmodels.training.optim import OptimConfig, build_optimizer
from genmodels.training.setup import compile_blocks
from genmodels.types import Batch, Noise

WIDTH, HIDDEN = 8, 16
TOKENS, EXPERTS = (
    ExpertsConfig(count=4, top_k=2, hidden=HIDDEN),
    ExpertsConfig(count=4, choice="experts", hidden=HIDDEN),
)
BY_LOSS = dataclasses.replace(TOKENS, balance="loss")


def config(experts: ExpertsConfig, **settings) -> TransformerConfig:
    return TransformerConfig(**(dict(width=WIDTH, depth=2, heads=2, experts=experts) | settings))


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Draw weights that are large enough for every part to matter, in float64."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.5, generator=generator)
        for router in routers_of(model):
            if router.bias is not None:
                router.bias.normal_(0.0, 0.3, generator=generator)
    return model.double()


def layer(experts: ExpertsConfig, **settings) -> Experts:
    return randomised(Experts(config(experts, **settings), MLPS[settings.get("mlp", "swiglu")], False))


def stack(experts: ExpertsConfig, causal: bool = False, **settings) -> Transformer:
    return randomised(Transformer(config(experts, **settings), causal=causal))


def tokens(n: int = 3, length: int = 10, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, length, WIDTH, generator=generator, dtype=torch.float64)


# ---- what is computed ----


def one_expert(mlp: Experts, e: int, x: Tensor) -> Tensor:
    """Apply expert e to the vector x (D,)."""
    hidden = mlp.up[e] @ x + (0 if mlp.up_bias is None else mlp.up_bias[e])
    if mlp.kind is SwiGLU:
        hidden = hidden[:HIDDEN] * torch.sigmoid(hidden[:HIDDEN]) * hidden[HIDDEN:]
    else:
        hidden = torch.nn.functional.gelu(hidden, approximate="tanh")
    return mlp.down[e] @ hidden + (0 if mlp.down_bias is None else mlp.down_bias[e])


def by_tokens(mlp: Experts, x: Tensor) -> Tensor:
    """Loop over tokens, each of which chooses experts."""
    c, rows = mlp.router.config, []
    for token in x.flatten(0, 1):
        logits = mlp.router.weight @ token
        scores = logits.sigmoid() if c.gate == "sigmoid" else logits.softmax(0)
        ranked = scores if mlp.router.bias is None else scores + mlp.router.bias
        chosen = sorted(range(c.count), key=lambda e: -float(ranked[e].detach()))[: c.top_k]
        total = sum(scores[e] for e in chosen) if c.top_k > 1 else 1
        rows.append(sum(c.scale * scores[e] / total * one_expert(mlp, e, token) for e in chosen))
    return torch.stack(rows).view_as(x) + (0 if mlp.shared is None else mlp.shared(x))


def by_experts(mlp: Experts, x: Tensor) -> Tensor:
    """Loop over images and experts, each of which chooses tokens of the image."""
    c, images = mlp.router.config, []
    for image in x:
        rows = [torch.zeros(WIDTH, dtype=x.dtype) for _ in image]
        scores = (image @ mlp.router.weight.T).softmax(1)  # (T, E)
        for e in range(c.count):
            order = sorted(range(len(image)), key=lambda t, e=e: -float(scores[t, e].detach()))
            for t in order[: len(image) * c.top_k // c.count]:
                rows[t] = rows[t] + scores[t, e] * one_expert(mlp, e, image[t])
        images.append(torch.stack(rows))
    return torch.stack(images)


@pytest.mark.parametrize(
    ("experts", "settings"),
    [
        (TOKENS, {}),
        (dataclasses.replace(TOKENS, gate="sigmoid", scale=2.5, shared=1), {}),
        (dataclasses.replace(TOKENS, top_k=1), {"mlp": "gelu", "bias": True}),
        (EXPERTS, {}),
    ],
    ids=["softmax", "sigmoid, shared", "top 1, biases", "expert choice"],
)
def test_it_equals_a_loop(experts, settings):
    mlp, x = layer(experts, **settings), tokens().requires_grad_()
    loop = by_experts if experts.choice == "experts" else by_tokens
    ours, expected = mlp(x), loop(mlp, x)
    torch.testing.assert_close(ours, expected, atol=1e-10, rtol=0)
    inputs = [x, *mlp.parameters()]
    for a, b in zip(*(torch.autograd.grad(y.sin().sum(), inputs) for y in (ours, expected)), strict=True):
        assert b.abs().max() > 1e-6
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


def test_all_experts_of_every_token_are_a_wide_mlp():
    """With k = E and equal gates, E experts of width h are one MLP of width E h."""
    mlp = layer(dataclasses.replace(TOKENS, top_k=4, scale=4.0))
    with torch.no_grad():
        mlp.router.weight.zero_()
        dense = SwiGLU(WIDTH, 4 * HIDDEN).double()
        gate, up = mlp.up.chunk(2, dim=1)
        dense.gate_up.weight.copy_(torch.cat([gate.flatten(0, 1), up.flatten(0, 1)]))
        dense.down.weight.copy_(mlp.down.transpose(0, 1).flatten(1))
        torch.testing.assert_close(mlp(tokens()), dense(tokens()))


def test_the_bias_changes_choices_and_not_gates():
    mlp, x = layer(TOKENS), tokens()
    assert mlp.router.bias is not None
    with torch.no_grad():
        mlp.router.bias.zero_()
        free = mlp.router(x)
        mlp.router.bias[2] = 10.0
        forced = mlp.router(x)
        scores = (x @ mlp.router.weight.T).softmax(-1)
    assert forced.chosen[..., 2].all() and not free.chosen[..., 2].all()
    assert (forced.chosen.sum(-1) == 2).all()
    chosen = scores * forced.chosen
    torch.testing.assert_close(forced.gates, chosen / chosen.sum(-1, keepdim=True))


def test_scores_are_float32_under_autocast():
    mlp, x = layer(TOKENS).float(), tokens().float()
    with torch.no_grad():
        plain = mlp.router(x)
        with torch.autocast("cpu", torch.bfloat16):
            mixed, y = mlp.router(x), mlp(x)
    assert torch.equal(mixed.gates, plain.gates) and torch.equal(mixed.chosen, plain.chosen)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), mlp(x).detach(), atol=0.5, rtol=0.05)


@torch.no_grad()
def test_a_token_does_not_depend_on_later_ones():
    model, x = stack(TOKENS, causal=True), tokens()
    whole = model(x)
    changed = x.clone()
    changed[:, 6:] += 1
    torch.testing.assert_close(model(changed)[:, :6], whole[:, :6])
    cache = model.make_cache(3, 10)
    pieces = [model(x[:, part], cache=cache) for part in (slice(0, 4), slice(4, 5), slice(5, 10))]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-10, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("experts", [TOKENS, EXPERTS], ids=["tokens", "experts"])
def test_images_do_not_depend_on_each_other(experts):
    model, x = stack(experts), tokens()
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]), atol=1e-10, rtol=0)


@torch.no_grad()
def test_a_trace_computes_the_same():
    mlp = layer(dataclasses.replace(TOKENS, shared=1)).eval()
    traced = torch.export.export(mlp, (tokens(),)).module()
    other = tokens(seed=5)  # which makes other choices
    torch.testing.assert_close(traced(other), mlp(other), atol=1e-10, rtol=0)


# ---- balance ----


def chosen_by(mlp: Experts, x: Tensor) -> Tensor:
    with torch.no_grad():
        return mlp.eval().router(x).chosen  # (N, T, E)


def test_the_bias_moves_by_the_sign_of_the_load():
    """Two micro-batches count together; a step in eval mode or without gradients does not."""
    mlp = layer(dataclasses.replace(TOKENS, rate=0.25))
    parts = [tokens(), tokens(2, seed=8)]
    before = mlp.router.bias.clone()
    load = sum(chosen_by(mlp, x).sum((0, 1)) for x in parts).double()  # (E,)
    mlp.train()
    for x in parts:
        mlp(x)
    with torch.no_grad():
        mlp(parts[0])
    mlp.eval()(parts[0])
    commit(mlp)
    torch.testing.assert_close(mlp.router.load, load / load.mean())
    torch.testing.assert_close(mlp.router.bias, before + 0.25 * (load.mean() - load).sign())
    commit(mlp)  # nothing was counted since
    torch.testing.assert_close(mlp.router.load, load / load.mean())


def test_the_bias_balances():
    """Tokens that all prefer the same two experts are spread evenly."""
    router = layer(dataclasses.replace(TOKENS, gate="sigmoid", rate=0.003)).router.train()
    router.bias.zero_()
    x = tokens(16, 64) + 1
    violations = []
    for _ in range(300):
        router(x)
        commit(router)
        violations.append(float(router.load.max() - 1))
    assert violations[0] > 0.5
    assert max(violations[-30:]) < 0.2


@pytest.mark.parametrize(
    ("experts", "compiled"),
    [(TOKENS, False), (BY_LOSS, False), (EXPERTS, False), pytest.param(BY_LOSS, True, marks=pytest.mark.slow)],
    ids=["bias", "loss", "experts", "compiled"],
)
def test_recomputation_counts_once(experts, compiled):
    results = []
    for again in (False, True):
        model = stack(experts, recompute=again, depth=1).train()
        if compiled and again:
            compile_blocks(model, backend="aot_eager")
        loss, metrics = with_balance(model, model(tokens()).square().mean(), {})
        loss.backward()
        assert not recompute.is_recomputation()
        commit(model)
        results.append(([p.grad for p in model.parameters()], [*model.state_dict().values()], metrics))
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second)


def test_the_auxiliary_loss_in_closed_form():
    model, x = stack(BY_LOSS, depth=1).train(), tokens(4, 12)
    mlp = model.blocks[0].mlp
    mlp(x)
    loss, metrics = with_balance(model, torch.zeros(()), {})
    scores = (x @ mlp.router.weight.T).softmax(-1)
    expected = torch.zeros((), dtype=torch.float64)
    for image in scores:
        share = torch.zeros(4, dtype=torch.float64)
        for token in image:
            for e in token.topk(2).indices:
                share[e] += 1 / (2 * 12)
        expected = expected + 4 * (share * image.mean(0)).sum() / 4
    torch.testing.assert_close(loss, BY_LOSS.weight * expected)
    torch.testing.assert_close(metrics["experts/balance_loss"], expected.detach())
    (gradient,) = torch.autograd.grad(loss, mlp.router.weight)
    (right,) = torch.autograd.grad(BY_LOSS.weight * expected, mlp.router.weight)
    torch.testing.assert_close(gradient, right)


def test_the_auxiliary_loss_is_1_when_balanced_and_the_count_when_not():
    mlp = layer(dataclasses.replace(BY_LOSS, top_k=1))
    with torch.no_grad():
        mlp.router.weight.zero_()
        mlp(tokens())
    mlp.train()(tokens())
    torch.testing.assert_close(mlp.router.collect().item(), 1.0)
    with torch.no_grad():
        mlp.router.weight[3] = 100.0
    mlp(tokens().abs())
    torch.testing.assert_close(mlp.router.collect().item(), 4.0)
    assert mlp.router.collect() is None


def test_the_dropped_share_is_that_of_tokens_no_expert_chose():
    mlp = layer(dataclasses.replace(EXPERTS, top_k=1))
    chosen = chosen_by(mlp, tokens(6, 16))
    assert (chosen.sum(1) == 4).all()  # every expert chooses 16 x 1 / 4 of the tokens of an image
    mlp.train()(tokens(6, 16))
    commit(mlp)
    share = (~chosen.any(-1)).double().mean()
    assert 0 < share < 1
    torch.testing.assert_close(mlp.router.dropped, share.view(1))
    torch.testing.assert_close(mlp.router.load, torch.ones(4, dtype=torch.float64))


def dit(process: str = "flow", **experts) -> DiT:
    torch.manual_seed(0)
    blocks = TransformerConfig(**TRANSFORMER, experts=ExpertsConfig(**({"count": 4} | experts)))
    return DiT(DiTConfig(size=8, patch=4, process=process, transformer=blocks))


def test_a_run_logs_the_balance(tmp_path):
    rows = lines(fit(dit(), faces(), recipe(tmp_path / "run", steps=4, log_every=1, sample_every=50)))
    assert rows[0]["experts/load_max"] == 1  # statistics are those of the step before
    for row in rows[1:]:
        assert row["experts/load_max"] > 1 > row["experts/load_min"]
        assert 0 < row["experts/max_violation"] <= row["experts/load_max"] - 1 + 1e-6
        assert "experts/dropped" not in row and "experts/balance_loss" not in row


@pytest.mark.parametrize("process", ["flow", "meanflow"])
def test_the_auxiliary_loss_is_trained(process):
    """Mean flows call the network twice on parts of a batch, once inside of a derivative."""
    model, batch = dit(process, balance="loss").train(), Batch(torch.zeros(4, 3, 8, 8), Noise.for_images(0, range(4)))
    loss, metrics = model(batch)
    plain, _ = model.loss(dataclasses.replace(batch, noise=Noise.for_images(0, range(4))), "model")
    assert metrics["experts/balance_loss"] == pytest.approx(1, abs=0.2)
    assert float((loss - plain).detach()) == pytest.approx(2 * 0.01 * float(metrics["experts/balance_loss"]), abs=1e-6)
    loss.backward()


# ---- optimisers ----


def test_muon_trains_each_matrix_for_itself_and_not_the_router():
    settings = OptimConfig(name="muon", lr=0.1, weight_decay=0.1)
    model = stack(dataclasses.replace(TOKENS, shared=1), bias=True, mlp="gelu").float()
    mlp = model.blocks[0].mlp
    optimizer = build_optimizer(model.parameters(), settings, model)
    alone = [torch.nn.Parameter(matrix.detach().clone()) for matrix in (*mlp.up, *mlp.down)]
    muon = torch.optim.Muon(alone, 0.1, 0.1, adjust_lr_fn="match_rms_adamw")
    before = mlp.router.weight.detach().clone()
    for step in range(2):
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        gradients = [matrix for stacked in (mlp.up, mlp.down) for matrix in stacked.grad]
        for parameter, gradient in zip(alone, gradients, strict=True):
            parameter.grad = gradient.clone()
        mlp.router.weight.grad.zero_()
        optimizer.step()
        muon.step()
    for ours, theirs in zip([*mlp.up, *mlp.down], alone, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(mlp.router.weight, before), "a router without a gradient decayed"
    decayed = [p for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]]
    assert not {id(p) for p in decayed} & {id(p) for p in (mlp.router.weight, mlp.up_bias, mlp.down_bias)}


def test_initial_weights():
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(width=64, depth=8, experts=ExpertsConfig(count=4)), causal=False)
    for block in model.blocks:
        assert abs(block.mlp.up.std().item() / 0.02 - 1) < 0.05
        assert abs(block.mlp.down.std().item() / (0.02 / 4) - 1) < 0.05  # sqrt(2 * 8) = 4
        assert abs(block.mlp.router.weight.std().item() / 0.02 - 1) < 0.2


# ---- costs ----


@pytest.mark.parametrize("experts", [dataclasses.replace(TOKENS, shared=1), EXPERTS], ids=["tokens", "experts"])
def test_operations_in_closed_form(experts):
    mlp, x = layer(experts).train(), tokens(2, 12).requires_grad_()
    with counting() as counter:
        mlp(x).sum().backward()
    router, expert = 2 * WIDTH * 4, 2 * WIDTH * 3 * HIDDEN  # a multiply-add as two
    forward = 2 * 12 * (router + (experts.top_k + experts.shared) * expert)
    assert counter.get_total_flops() == 3 * forward


def test_active_parameters_in_closed_form():
    model = stack(dataclasses.replace(TOKENS, shared=1))
    expert = 3 * WIDTH * HIDDEN
    total = sum(p.numel() for p in model.parameters())
    assert active_parameters(model) == total - 2 * (4 - 2) * expert
    assert active_parameters(Transformer(TransformerConfig(), causal=True)) == sum(
        p.numel() for p in Transformer(TransformerConfig(), causal=True).parameters()
    )


def test_a_token_costs_as_much_as_with_a_dense_mlp():
    assert ExpertsConfig(count=8, top_k=2).inner(704) == 352
    assert ExpertsConfig(count=8, top_k=2, shared=1).inner(704) == 240  # 234.7, rounded up to a multiple of 8
    assert ExpertsConfig(count=8, hidden=20).inner(704) == 20


def test_info_shows_the_experts(tmp_path):
    model = dit()
    model.save_pretrained(tmp_path)
    facts = describe(str(tmp_path), model)
    total, active = (sum(p.numel() for p in model.parameters()), active_parameters(model))
    assert facts["parameters"] == f"{total:,}, {active:,} of them for each token"
    assert facts["load of experts"].splitlines()[1] == "block 1: 1.00 1.00 1.00 1.00"


# ---- settings ----


def test_settings_are_recorded_where_they_have_an_effect():
    written = to_dict(TransformerConfig(experts=dataclasses.replace(EXPERTS, hidden=None)))["experts"]
    assert "balance" not in written and written["choice"] == "experts"
    assert "experts" not in to_dict(TransformerConfig())
    for experts in (TOKENS, BY_LOSS, EXPERTS, ExpertsConfig()):
        whole = TransformerConfig(experts=experts)
        assert from_dict(TransformerConfig, json.loads(json.dumps(to_dict(whole)))) == whole


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(count=1), "count must be at least 2 \\(or 0 for a dense MLP\\), got 1"),
        (dict(count=-2), "count must be at least 2"),
        (dict(count=4, top_k=5), "top_k must be 1 to count = 4, got 5"),
        (dict(count=4, top_k=0), "top_k must be 1 to count = 4, got 0"),
        (dict(count=4, hidden=0), "hidden must be at least 1, got 0"),
        (dict(count=4, shared=-1), "shared must not be negative, got -1"),
        (dict(count=4, gate="relu"), "gate must be one of softmax, sigmoid, got 'relu'"),
        (dict(count=4, rate=0.0), "rate must be above 0, got 0"),
        (dict(count=4, weight=0.1), "weight has no effect with choice 'tokens' and balance 'bias', got 0.1"),
        (dict(count=4, choice="experts", balance="loss"), "balance has no effect with choice 'experts'"),
        (dict(shared=1), "shared has no effect with a dense MLP \\(count 0\\), got 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"^experts: {message}") as error:
        ExpertsConfig(**settings)
    assert "\n" not in str(error.value)


def test_transformers_without_place_for_experts_are_refused():
    with pytest.raises(ValueError, match="experts: choice 'experts' .* use choice 'tokens'"):
        stack(EXPERTS, causal=True)
    with pytest.raises(ValueError, match="hidden and experts are settings of an MLP"):
        TransformerConfig(mlp="none", experts=TOKENS)
