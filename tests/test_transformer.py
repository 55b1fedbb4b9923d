"""Transformer: against Llama, cached against uncached, and its parts against their formulas."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from genmodels.exchange.llama import from_llama
from genmodels.nn.attention import attend, set_backend
from genmodels.nn.block import Block, Modulation
from genmodels.nn.layers import MLP, MLPS, RMSNorm, SwiGLU
from genmodels.nn.mixer import init_weights
from genmodels.nn.places import Places
from genmodels.nn.rope import grid_positions, rope, rotate
from genmodels.nn.transformer import Transformer, TransformerConfig

TINY = TransformerConfig(width=32, depth=3, heads=4, kv_heads=2, hidden=48)


def randomised(config: TransformerConfig, seed: int = 0, causal: bool = True) -> Transformer:
    """Weights large enough for every part to matter."""
    torch.manual_seed(seed)
    model = Transformer(config, causal=causal).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=0.2)
    return model


def tokens(n: int = 2, length: int = 24, width: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, length, width, generator=torch.Generator().manual_seed(seed))


# ---- against Llama ----


def llama():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
            initializer_range=0.2,
        )
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model


def test_against_llama():
    theirs = llama()
    ours = Transformer(dataclasses.replace(TINY, rope_theta=500_000.0), causal=True).eval()
    ours.load_state_dict(from_llama(theirs.state_dict()))
    ids = torch.randint(0, 50, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(ids).logits
        logits = theirs.lm_head(ours(theirs.model.embed_tokens(ids)))
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
        assert expected.std() > 0.5

        generated = theirs.generate(ids[:, :5], max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
        cache, own = ours.make_cache(2, 17), [ids[:, :5]]
        for _ in range(12):
            last = ours(theirs.model.embed_tokens(own[-1]), cache=cache)[:, -1:]
            own.append(theirs.lm_head(last).argmax(-1))
        assert torch.equal(torch.cat(own, dim=1), generated)


def test_the_older_parts_are_gpt2():
    """GPT-2 has LayerNorm, GELU, biases, no rotary positions. Its norms have a gain of 1 here."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=24, vocab_size=8, initializer_range=0.2
    )
    theirs = transformers.GPT2Model(config).eval()
    older = TransformerConfig(width=32, depth=2, heads=4, norm="layer", mlp="gelu", bias=True, rotary=False)
    ours = Transformer(older, causal=True).eval()
    names = {
        "attention.qkv": "attn.c_attn",
        "attention.out": "attn.c_proj",
        "mlp.up": "mlp.c_fc",
        "mlp.down": "mlp.c_proj",
    }
    state = theirs.state_dict()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        theirs.wpe.weight.zero_()
        for name, value in state.items():
            if name.endswith("bias") and "ln_" not in name and "attn.bias" not in name:
                value.normal_(generator=generator)
        for i, block in enumerate(ours.blocks):
            for mine, other in names.items():
                layer = block.get_submodule(mine)
                layer.weight.copy_(state[f"h.{i}.{other}.weight"].T)
                layer.bias.copy_(state[f"h.{i}.{other}.bias"])
        expected = theirs(inputs_embeds=tokens()).last_hidden_state
        torch.testing.assert_close(ours(tokens()), expected, atol=1e-5, rtol=1e-5)


def test_weights_that_are_not_llamas_are_refused():
    state = dict(llama().state_dict())
    with pytest.raises(ValueError, match="no place for layers.1.self_attn.q_proj.bias"):
        from_llama(state | {"model.layers.1.self_attn.q_proj.bias": torch.zeros(32)})
    del state["model.layers.2.mlp.up_proj.weight"]
    with pytest.raises(ValueError, match="layers.2.mlp.up_proj.weight is missing"):
        from_llama(state)


# ---- the cache ----


@torch.no_grad()
def in_pieces(model, x: torch.Tensor, cache, pieces: list[int], positions=None) -> torch.Tensor:
    outs, start = [], 0
    for size in pieces:
        span = slice(start, start + size)
        outs.append(model(x[:, span], None if positions is None else positions[span], cache))
        start += size
    return torch.cat(outs, dim=1)


@pytest.mark.parametrize("pieces", [[1] * 24, [10] + [1] * 14, [5, 7, 1, 11]], ids=["tokens", "prefix", "chunks"])
@pytest.mark.parametrize("changes", [{}, dict(kv_heads=1, qk_norm=True), dict(kv_heads=None)])
def test_cached_equals_uncached(pieces, changes):
    model = randomised(dataclasses.replace(TINY, **changes))
    x = tokens()
    with torch.no_grad():
        whole = model(x)
    cache = model.make_cache(2, 30)
    torch.testing.assert_close(in_pieces(model, x, cache, pieces), whole, atol=1e-5, rtol=0)
    assert cache.length == 24 and cache.states[0][0].shape == (2, model.config.key_heads, 30, 8)


def test_cached_equals_uncached_over_a_grid():
    model, x, positions = randomised(TINY), tokens(), grid_positions(4, 6)
    with torch.no_grad():
        whole = model(x, positions)
        assert (whole - model(x)).abs().max() > 1e-2
    outputs = in_pieces(model, x, model.make_cache(2, 24), [7] + [1] * 17, positions)
    torch.testing.assert_close(outputs, whole, atol=1e-5, rtol=0)


def test_a_cache_can_be_rewound():
    """What lies beyond the length, here from another sequence, is not seen."""
    model, x = randomised(TINY), tokens()
    cache = model.make_cache(2, 24)
    first = in_pieces(model, x, cache, [24])
    cache.rewind(10)
    in_pieces(model, tokens(seed=1), cache, [14])
    cache.rewind(10)
    torch.testing.assert_close(in_pieces(model, x[:, 10:], cache, [4] + [1] * 10), first[:, 10:], atol=1e-5, rtol=0)


def test_a_compiled_step_reads_the_whole_cache_masked_and_is_compiled_once():
    model, x = randomised(TINY), tokens()
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(model, backend=count, fullgraph=True)
    cache = model.make_cache(2, 30)
    cache.states[1][1][:, :, 24:] = 1e4  # must not be seen
    outputs = in_pieces(compiled, x, cache, [6] + [1] * 18)
    with torch.no_grad():
        torch.testing.assert_close(outputs, model(x), atol=1e-5, rtol=0)
    assert len(graphs) == 2, "one for the prefix, one for every step"


def test_the_cache_follows_autocast():
    model, x = randomised(TINY), tokens()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        cache = model.make_cache(2, 24)
        assert cache.states[0][0].dtype == torch.bfloat16
        assert model.make_cache(2, 24, torch.float32).states[0][0].dtype == torch.float32
        whole = model(x)
        assert whole.dtype == torch.float32, "the residual stream and the norms stay in float32"
        outputs = in_pieces(model, x, cache, [10] + [1] * 14)
    torch.testing.assert_close(outputs, whole, atol=0.05, rtol=0)
    with torch.no_grad():
        error = (whole - model(x)).square().mean().sqrt()
    assert 1e-4 < error < 0.05


def test_a_full_cache_and_a_bidirectional_model_are_refused():
    model = randomised(TINY)
    cache = model.make_cache(2, 10)
    in_pieces(model, tokens(length=8), cache, [8])
    with pytest.raises(ValueError, match="11 positions are more than the cache's 10"):
        model(tokens(length=3), cache=cache)
    with pytest.raises(ValueError, match="a cache needs a causal transformer"):
        randomised(TINY, causal=False).make_cache(2, 10)


# ---- what sees what ----


@torch.no_grad()
def test_only_the_past_is_seen_when_causal_and_everything_when_not():
    x = tokens()
    other = x.clone()
    other[:, 15] = 9.0
    for causal in (True, False):
        model = randomised(TINY, causal=causal)
        change = (model(other) - model(x)).abs().amax((0, 2))
        assert change[15:].min() > 1e-4
        assert (change[:15].max() < 1e-6) if causal else (change[:15].min() > 1e-4)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@torch.no_grad()
def test_the_backend_can_be_changed():
    model, x = randomised(TINY), tokens()
    expected = model(x)
    set_backend(model, "flex")
    assert all(block.attention.backend == "flex" for block in model.blocks)
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=0)
    set_backend(model, "flash")
    with pytest.raises(ValueError, match="'flash' needs an NVIDIA GPU; these can run on cpu: native, flex"):
        model(x)
    with pytest.raises(ValueError, match="unknown attention backend 'sdpa'; known: native"):
        set_backend(model, "sdpa")


# ---- rotary positions ----


def test_rope_is_that_of_transformers():
    llama_module = pytest.importorskip("transformers.models.llama.modeling_llama")
    q, k = tokens(6, 9, 8).unflatten(0, (2, 3)), tokens(6, 9, 8, seed=1).unflatten(0, (2, 3))
    angles = rope(torch.arange(9), 8, theta=1e4)
    cos, sin = (torch.cat([part, part], dim=-1)[None] for part in angles)
    theirs = llama_module.apply_rotary_pos_emb(q, k, cos, sin)
    torch.testing.assert_close((rotate(q, angles), rotate(k, angles)), theirs)
    wavelengths = 2 * math.pi / torch.tensor([1.0, 1e4 ** -(2 / 8), 1e4 ** -(4 / 8), 1e4 ** -(6 / 8)])
    for i, length in enumerate(wavelengths):
        cos, sin = rope(torch.tensor([float(length)]), 8)
        torch.testing.assert_close(torch.stack([cos[0, i], sin[0, i]]), torch.tensor([1.0, 0.0]), atol=1e-4, rtol=0)


def test_dot_products_depend_on_differences_of_positions_in_one_and_two_dimensions():
    q, k = tokens(1, 2, 8)[0]

    def product(first, second):
        turned = [rotate(x, rope(torch.tensor([p]), 8)) for x, p in ((q, first), (k, second))]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(product(3.0, 5.0), product(10.0, 12.0))
    assert (product(3.0, 5.0) - product(3.0, 6.0)).abs() > 1e-3
    torch.testing.assert_close(product([3.0, 1.0], [5.0, 7.0]), product([10.0, 0.0], [12.0, 6.0]))
    assert (product([3.0, 1.0], [5.0, 7.0]) - product([3.0, 1.0], [7.0, 5.0])).abs() > 1e-3


def test_over_a_grid_half_the_pairs_turn_by_the_row_and_half_by_the_column():
    cos, sin = rope(torch.tensor([[3, 0], [0, 5]]), 16)  # (2, 8)
    row, column = rope(torch.tensor([3, 5]), 8), torch.ones(4)
    assert torch.equal(cos, torch.stack([torch.cat([row[0][0], column]), torch.cat([column, row[0][1]])]))
    assert torch.equal(sin, torch.stack([torch.cat([row[1][0], column * 0]), torch.cat([column * 0, row[1][1]])]))
    assert grid_positions(2, 3).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_rows_may_have_their_own_positions():
    lines, grids = torch.tensor([[3, 0], [1, 7]])[..., None], torch.stack([grid_positions(2, 3), grid_positions(3, 2)])
    for positions, x in ((lines, tokens(2, 2, 8)), (grids, tokens(2, 6, 8))):
        x = x.unflatten(-1, (1, 8)).transpose(1, 2)  # (N, H, T, d)
        turned = rotate(x, rope(positions, 8))
        for row in range(2):
            own = positions[row].squeeze(-1) if positions.shape[-1] == 1 else positions[row]
            torch.testing.assert_close(turned[row], rotate(x[row][None], rope(own, 8))[0], atol=0, rtol=0)


def test_rotation_is_computed_in_float32():
    """Near 4,001 neighbouring bfloat16 numbers are 16 apart. The angle must still be exact."""
    x = torch.ones(1, 1, 1, 8, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        turned = rotate(x, rope(torch.tensor([4001]), 8))
    assert turned.dtype == torch.bfloat16
    expected = torch.tensor(math.cos(4001) - math.sin(4001))
    torch.testing.assert_close(turned[0, 0, 0, 0].float(), expected, atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("positions", "d", "message"),
    [
        (torch.arange(4), 7, "RoPE in 1-D needs a head of a multiple of 2 channels, got 7"),
        (grid_positions(2, 2), 6, "RoPE in 2-D needs a head of a multiple of 4 channels, got 6"),
        (torch.zeros(4, 3), 12, r"positions must be \(T,\), \(T, 2\) or \(N, T, 1 or 2\), got \(4, 3\)"),
    ],
)
def test_positions_that_cannot_be_are_refused(positions, d, message):
    with pytest.raises(ValueError, match=message):
        rope(positions, d)


# ---- the parts ----


def test_norm_and_mlp_are_their_formulas():
    x = tokens()
    norm = RMSNorm(32, 1e-3)
    torch.nn.init.uniform_(norm.weight)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)
    half = norm((1000 * x).half())  # the squares are beyond float16
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), norm(1000 * x), atol=0.005, rtol=0.005)
    mlp = SwiGLU(32, 48)
    gate, up = mlp.gate_up.weight[:48], mlp.gate_up.weight[48:]
    torch.testing.assert_close(mlp(x), (F.silu(x @ gate.T) * (x @ up.T)) @ mlp.down.weight.T)


def test_queries_and_keys_are_normalised_per_head_before_they_turn():
    config = dataclasses.replace(TINY, qk_norm=True)
    layer = randomised(config).blocks[0].attention
    x, angles = tokens(), rope(torch.arange(24), 8)

    def normalised(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    q, k, v = (x @ layer.qkv.weight.T).split([32, 16, 16], dim=-1)
    q, k, v = (part.unflatten(-1, (-1, 8)).transpose(1, 2) for part in (q, k, v))
    q, k = normalised(q, layer.q_norm.weight), normalised(k, layer.k_norm.weight)
    mixed = attend(rotate(q, angles), rotate(k, angles), v, causal=True)
    expected = mixed.transpose(1, 2).flatten(2) @ layer.out.weight.T
    torch.testing.assert_close(layer(x, Places(torch.arange(24), angles)), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_modulation_is_adaln():
    block = randomised(TINY, causal=False).blocks[0]
    assert isinstance(block, Block)
    x, places = tokens(), Places(grid_positions(4, 6), rope(grid_positions(4, 6), 8))
    nothing = torch.zeros(2, 1, 32)
    closed = Modulation(nothing + 3, nothing + 2, nothing)
    assert torch.equal(block(x, places, None, (closed, closed)), x), "gates at zero leave the identity"
    neutral = Modulation(nothing, nothing, nothing + 1)
    torch.testing.assert_close(block(x, places, None, (neutral, neutral)), block(x, places))

    first, second = (Modulation(*torch.randn(3, 2, 24, 32)) for _ in range(2))  # each token its own
    h = x + first.gate * block.attention(block.attention_norm(x) * (1 + first.scale) + first.shift, places)
    h = h + second.gate * block.mlp(block.mlp_norm(h) * (1 + second.scale) + second.shift)
    torch.testing.assert_close(block(x, places, None, (first, second)), h, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_each_block_gets_its_own_modulation():
    model, x = randomised(TINY), tokens()
    zero, one = torch.zeros(2, 1, 32), torch.ones(2, 1, 32)
    closed, neutral = Modulation(zero, zero, zero), Modulation(zero, zero, one)
    only_second = [(closed, closed), (neutral, neutral), (closed, closed)]
    expected = model.norm(model.blocks[1](x, model.places(torch.arange(24))))
    torch.testing.assert_close(model(x, modulation=only_second), expected)


@torch.no_grad()
def test_a_function_is_applied_after_its_block():
    model, x = randomised(TINY), tokens()
    places = model.places(torch.arange(24))
    first, second, third = model.blocks
    expected = third(second(first(x, places), places) * 3, places)
    unchanged = torch.nn.Identity()
    out = model(x, after=[unchanged, lambda x: x * 3, unchanged])
    torch.testing.assert_close(out, model.norm(expected))


def test_initialisation():
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(width=256, depth=8), causal=True)
    for block in model.blocks:
        for layer in (block.attention.qkv, block.mlp.gate_up):
            assert abs(layer.weight.std().item() / 0.02 - 1) < 0.02
        for layer in (block.attention.out, block.mlp.down):
            assert abs(layer.weight.std().item() / (0.02 / 4) - 1) < 0.02  # sqrt(2 * 8) = 4
        assert (block.mlp_norm.weight == 1).all()
    around = torch.nn.ModuleList([torch.nn.Embedding(500, 256), torch.nn.Linear(256, 500), model])
    init_weights(around, 8)
    assert abs(around[0].weight.std().item() / 0.02 - 1) < 0.02 and (around[1].bias == 0).all()


def gradients(config: TransformerConfig) -> list[torch.Tensor]:
    model = randomised(config).train()
    torch.manual_seed(7)
    model(tokens()).square().mul(tokens(seed=2)).sum().backward()
    return [parameter.grad for parameter in model.parameters()]


def test_recomputing_changes_no_gradient():
    """Dropout included: the second time the same values are dropped."""
    plain = gradients(dataclasses.replace(TINY, dropout=0.3))
    again = gradients(dataclasses.replace(TINY, dropout=0.3, recompute=True))
    for first, second in zip(plain, again, strict=True):
        assert first.abs().max() > 0
        torch.testing.assert_close(first, second)


@torch.no_grad()
def test_dropout_is_for_training_alone():
    model, x = randomised(dataclasses.replace(TINY, dropout=0.5)), tokens()
    assert torch.equal(model(x), randomised(TINY)(x))
    assert not torch.equal(model.train()(x), model(x))


def test_another_mlp_is_one_class_and_one_entry(monkeypatch):
    class Squared(MLP):
        def __init__(self, width, hidden, bias=False):
            super().__init__(width, hidden, bias)
            self.up, self.down = torch.nn.Linear(width, hidden, bias), torch.nn.Linear(hidden, width, bias)

        def forward(self, x):
            return self.down(self.activate(self.up(x)))

        @staticmethod
        def activate(x):
            return x.relu().square()

        def residual(self):
            return (self.down.weight,)

        @staticmethod
        def default_hidden(width):
            return 5 * width

    with pytest.raises(ValueError, match="exact_gelu or quick_gelu or none, got 'rms' and 'squared'"):
        dataclasses.replace(TINY, mlp="squared")
    monkeypatch.setitem(MLPS, "squared", Squared)
    torch.manual_seed(0)
    block = Transformer(dataclasses.replace(TINY, mlp="squared", hidden=None), causal=True).blocks[0]
    assert block.mlp.up.weight.shape == (160, 32)
    assert abs(block.mlp.down.weight.std().item() / (0.02 / math.sqrt(6)) - 1) < 0.05
    x, places = tokens(), Places(torch.arange(24))
    zero, one = torch.zeros(2, 1, 32), torch.ones(2, 1, 32)
    only = (Modulation(zero, zero, zero), Modulation(zero, zero, one))
    torch.testing.assert_close(block(x, places, None, only), x + block.mlp(block.mlp_norm(x)))


@pytest.mark.parametrize(("width", "inner"), [(256, 704), (96, 256), (768, 2048)])
def test_the_mlp_is_eight_thirds_of_the_width(width, inner):
    assert TransformerConfig(width=width).inner == inner


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(width=30), "width 30 must be 4 heads of an even number of channels: choose a multiple of 8"),
        (dict(width=36), "width 36 must be 4 heads of an even number of channels"),
        (dict(kv_heads=3), "kv_heads 3 must divide heads 4"),
        (dict(depth=0), "must be at least 1"),
        (dict(kv_heads=0), "must be at least 1"),
        (dict(norm="batch"), "norm must be rms or layer or affine and mlp swiglu or .* got 'batch'"),
        (dict(dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (dict(rope_theta=0.0), "rope_theta and norm_eps must be positive"),
        (dict(backend="sdpa"), "unknown attention backend 'sdpa'; known: native, flash, flash3, flex"),
    ],
)
def test_impossible_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)
