"""Experts compute what those of transformers compute, with the same weights, in both directions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from genmodels.exchange.experts import LAYOUTS, config_of, from_transformers, to_transformers
from genmodels.nn.experts import Experts, ExpertsConfig
from genmodels.nn.layers import MLPS
from genmodels.nn.transformer import TransformerConfig

CONFIGS = {
    "mixtral": (
        transformers.MixtralConfig,
        dict(hidden_size=16, intermediate_size=24, num_local_experts=6, num_experts_per_tok=2),
    ),
    "deepseek_v3": (
        transformers.DeepseekV3Config,
        dict(
            hidden_size=16,
            moe_intermediate_size=24,
            n_routed_experts=6,
            num_experts_per_tok=3,
            n_shared_experts=2,
            n_group=1,
            topk_group=1,
            routed_scaling_factor=2.5,
        ),
    ),
}
BLOCKS = {"mixtral": MixtralSparseMoeBlock, "deepseek_v3": DeepseekV3MoE}


def config(model_type: str, **changes: Any) -> Any:
    kind, settings = CONFIGS[model_type]
    return kind(**(settings | changes))


def block_of(config: Any) -> torch.nn.Module:
    """Build a block of transformers with random weights, also in the bias of the choice."""
    config._experts_implementation = "eager"
    block = BLOCKS[config.model_type](config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in block.state_dict().values():
            tensor.normal_(0, 0.3, generator=generator)
    return block


def tokens() -> Tensor:
    return torch.randn(3, 20, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("model_type", LAYOUTS)
def test_they_compute_the_same(model_type):
    block = block_of(config(model_type))
    ours = from_transformers(config(model_type).to_dict(), block.state_dict())
    outputs, gradients = [], []
    for mlp in (ours, block):
        x = tokens().requires_grad_()
        y = mlp(x)
        y.sin().sum().backward()
        outputs.append(y)
        gradients.append(x.grad)
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4, rtol=0)
    theirs = dict(block.named_parameters())
    for name, others in LAYOUTS[model_type].items():
        if name != "router.bias":  # which has no gradient
            expected = torch.cat([theirs[other].grad for other in others])
            assert expected.abs().max() > 1e-3
            torch.testing.assert_close(ours.get_parameter(name).grad, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("model_type", LAYOUTS)
def test_there_and_back(model_type):
    block = block_of(config(model_type))
    arguments, state = to_transformers(from_transformers(config(model_type).to_dict(), block.state_dict()), model_type)
    again = block_of(CONFIGS[model_type][0](**arguments))
    again.load_state_dict(state)
    assert again.state_dict().keys() == block.state_dict().keys()
    torch.testing.assert_close(again(tokens()), block(tokens()))


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("deepseek_v3", {"n_group": 2}, "n_group 2 are not supported, only 1"),
        ("deepseek_v3", {"norm_topk_prob": False}, "norm_topk_prob False are not supported, only True"),
        ("mixtral", {"hidden_act": "gelu"}, "hidden_act 'gelu' are not supported, only 'silu'"),
        ("mixtral", {"num_experts_per_tok": 1}, "of which each token uses one are not supported"),
        ("mixtral", {"model_type": "llama"}, "converted from mixtral and deepseek_v3, got 'llama'"),
    ],
)
def test_settings_without_counterpart_are_refused(model_type, changes, message):
    with pytest.raises(ValueError, match=message):
        config_of(config(model_type).to_dict() | changes)


def test_other_weights_are_refused():
    settings, weights = config("mixtral").to_dict(), block_of(config("mixtral")).state_dict()
    with pytest.raises(ValueError, match="no place for extra"):
        from_transformers(settings, weights | {"extra": torch.zeros(1)})
    del weights["gate.weight"]
    with pytest.raises(ValueError, match="gate.weight is missing"):
        from_transformers(settings, weights)


@pytest.mark.parametrize(
    ("model_type", "experts", "settings", "message"),
    [
        ("mixtral", dict(gate="sigmoid", shared=1), {}, "its gates are not softmax; it has a shared expert"),
        ("mixtral", dict(choice="experts"), {"mlp": "gelu"}, "experts choose tokens; its MLPs are not swiglu"),
        ("deepseek_v3", dict(top_k=1), {"bias": True}, "biases; one expert processes a token; its gates are not sig"),
        ("deepseek", {}, {}, "converted to mixtral and deepseek_v3, got 'deepseek'"),
    ],
)
def test_experts_without_counterpart_are_refused(model_type, experts, settings, message):
    whole = TransformerConfig(width=8, heads=2, experts=ExpertsConfig(**({"count": 4} | experts)), **settings)
    with pytest.raises(ValueError, match=message):
        to_transformers(Experts(whole, MLPS[whole.mlp], causal=False), model_type)
