"""Conversion between our experts and the modules DeepseekV3MoE and MixtralSparseMoeBlock of
transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from genmodels.nn.experts import Experts, ExpertsConfig
from genmodels.nn.layers import MLPS
from genmodels.nn.transformer import TransformerConfig

MIXTRAL = {
    "router.weight": ["gate.weight"],
    "up": ["experts.gate_up_proj"],
    "down": ["experts.down_proj"],
}
"""Names of our tensors in MixtralSparseMoeBlock, which has no shared expert."""
DEEPSEEK_V3 = MIXTRAL | {
    "router.bias": ["gate.e_score_correction_bias"],
    "shared.gate_up.weight": ["shared_experts.gate_proj.weight", "shared_experts.up_proj.weight"],
    "shared.down.weight": ["shared_experts.down_proj.weight"],
}
"""Names of our tensors in DeepseekV3MoE. Where there are two, they are stacked in this order."""
LAYOUTS = {"mixtral": MIXTRAL, "deepseek_v3": DEEPSEEK_V3}
"""Names by `model_type` of a config of transformers."""


def from_transformers(settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Experts:
    """Convert a MixtralSparseMoeBlock or a DeepseekV3MoE.

    | here                  | transformers 5                                                        |
    |-----------------------|-----------------------------------------------------------------------|
    | router.weight         | gate.weight                                                           |
    | up                    | experts.gate_up_proj                                                  |
    | down                  | experts.down_proj                                                     |
    | router.bias           | gate.e_score_correction_bias (deepseek_v3)                            |
    | shared.gate_up.weight | shared_experts.{gate,up}_proj.weight, stacked in this order (as above) |
    | shared.down.weight    | shared_experts.down_proj.weight (as above)                            |

    Args:
        settings: config of the model, as `config.to_dict()` returns it.
        weights: state dict of the module.

    Raises:
        ValueError: if the config is of another model or has a setting without counterpart, or a
            weight is missing or unknown.
    """
    config = config_of(settings)
    names = LAYOUTS[settings["model_type"]]
    source = dict(weights)
    for theirs in names.values():
        if absent := [name for name in theirs if name not in source]:
            raise ValueError(f"not the weights of experts of {settings['model_type']}: {absent[0]} is missing")
    target = {ours: torch.cat([source.pop(name) for name in theirs]) for ours, theirs in names.items()}
    if source:
        raise ValueError(f"not the weights of experts of {settings['model_type']}: no place for {', '.join(source)}")
    mlp = Experts(config, MLPS[config.mlp], causal=True)
    mlp.load_state_dict(target | {"router.load": mlp.router.load})
    return mlp.eval()


def to_transformers(mlp: Experts, model_type: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Convert experts to a MixtralSparseMoeBlock or a DeepseekV3MoE.

    Args:
        mlp: the experts.
        model_type: "mixtral" or "deepseek_v3".

    Returns:
        Arguments of MixtralConfig or DeepseekV3Config, and the state dict of the module.

    Raises:
        ValueError: if the module cannot compute the same.
    """
    if reasons := unsupported(mlp, model_type):
        raise ValueError(f"experts of {model_type} cannot compute the same: {'; '.join(reasons)}")
    c = mlp.router.config
    count, width, hidden = mlp.down.shape
    source = mlp.state_dict()
    source.setdefault("router.bias", torch.zeros(count))
    target: dict[str, Tensor] = {}
    for ours, theirs in LAYOUTS[model_type].items():
        target |= zip(theirs, source[ours].chunk(len(theirs)), strict=True)
    shapes = {"hidden_size": width, "num_experts_per_tok": c.top_k}
    if model_type == "mixtral":
        return shapes | {"num_local_experts": count, "intermediate_size": hidden}, target
    return shapes | {
        "n_routed_experts": count,
        "moe_intermediate_size": hidden,
        "n_shared_experts": c.shared,
        "routed_scaling_factor": c.scale,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
    }, target


def config_of(settings: Mapping[str, Any]) -> TransformerConfig:
    """Return a config with the experts of a config of transformers.

    Raises:
        ValueError: if it is of another model, or has a setting without counterpart.
    """
    model_type = settings.get("model_type")
    if model_type not in LAYOUTS:
        raise ValueError(f"experts are converted from {' and '.join(LAYOUTS)}, got {model_type!r}")
    mixtral = model_type == "mixtral"
    required: dict[str, Any] = {"hidden_act": "silu"}
    required |= {"router_jitter_noise": 0.0} if mixtral else {"n_group": 1, "norm_topk_prob": True}
    for name, value in required.items():
        if settings.get(name, value) != value:
            raise ValueError(f"experts with {name} {settings[name]!r} are not supported, only {value!r}")
    if settings["num_experts_per_tok"] < 2:
        raise ValueError("experts of which each token uses one are not supported: transformers sets its gate to 1")
    experts = ExpertsConfig(
        count=settings["num_local_experts" if mixtral else "n_routed_experts"],
        top_k=settings["num_experts_per_tok"],
        hidden=settings["intermediate_size" if mixtral else "moe_intermediate_size"],
    )
    if mixtral:
        experts = replace(experts, balance="loss")
    else:
        experts = replace(
            experts, gate="sigmoid", shared=settings["n_shared_experts"], scale=settings["routed_scaling_factor"]
        )
    return TransformerConfig(width=settings["hidden_size"], depth=1, heads=1, experts=experts)


def unsupported(mlp: Experts, model_type: str) -> list[str]:
    """Return what the module of transformers does not support of experts.

    Raises:
        ValueError: if there is no such layout.
    """
    if model_type not in LAYOUTS:
        raise ValueError(f"experts are converted to {' and '.join(LAYOUTS)}, got {model_type!r}")
    c, bias = mlp.router.config, mlp.router.bias
    reasons = {
        "experts choose tokens": c.choice == "experts",
        "its MLPs are not swiglu": mlp.kind is not MLPS["swiglu"],
        "its layers have biases": mlp.up_bias is not None,
        "one expert processes a token": c.top_k < 2,
    }
    if model_type == "mixtral":
        reasons |= {
            "its gates are not softmax": c.gate != "softmax",
            "it scales its gates": c.scale != 1,
            "it has a shared expert": c.shared > 0,
            "it adds a bias to the scores": bias is not None and bool(bias.any()),
        }
    else:
        reasons |= {"its gates are not sigmoid": c.gate != "sigmoid", "it has no shared expert": c.shared == 0}
    return [reason for reason, applies in reasons.items() if applies]
