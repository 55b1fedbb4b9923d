"""Pruning of grouped heads (arXiv 2305.14380): one head of each group stays, chosen by votes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from genmodels.base import Model
from genmodels.nn.attention import Attention
from genmodels.nn.head_groups import FORMED, Groups, HeadGroupsConfig, grouped, groups_of
from genmodels.nn.transformer import TransformerConfig
from genmodels.types import Batch


def formed_groups(model: nn.Module) -> dict[str, Groups]:
    """Return the groups of every attention of `model` with grouped heads, by its name.

    Raises:
        ValueError: if there is none, or the heads of a group are not similar enough yet.
    """
    groups = {name: groups_of(attention) for name, attention in grouped(model).items()}
    if not groups:
        raise ValueError(
            "this model has no grouped heads to prune: train one with --model.transformer.head-groups.count C"
        )
    for name, each in groups.items():
        if each.cohesion() < FORMED:
            raise ValueError(
                f"the head groups of {name} have not formed: the mean similarity in a group is {each.cohesion():.2f}, "
                f"and {FORMED:g} is needed; train for longer, or with a larger --model.transformer.head-groups.weight"
            )
    return groups


@torch.no_grad()
def vote(model: Model, groups: dict[str, Groups], batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Return the votes (H,) for the heads of every attention with grouped heads, by its name.

    Each batch gives one vote in every group, to the head whose output, projected to the residual
    stream, has the largest norm.

    Args:
        model: in eval mode.
        groups: of `formed_groups`.
        batches: of training images.
    """
    votes: dict[str, Tensor] = {}

    def count(name: str, attention: Attention) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        votes[name] = torch.zeros(attention.heads[0])
        weight = attention.out.weight.unflatten(1, (-1, attention.head_dim))  # (D, H, d)
        product = torch.einsum("xhd,xhe->hde", weight, weight).float()

        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            o = inputs[0].unflatten(-1, (-1, attention.head_dim)).float()  # (N, T, H, d)
            strength = torch.einsum("nthd,hde,nthe->h", o, product, o).cpu()
            member = groups[name].member.cpu()
            strongest = torch.where(member > 0, strength[:, None], -1.0).argmax(0)  # (C,)
            votes[name][strongest] += 1

        return hook

    attentions = grouped(model)
    hooks = [each.out.register_forward_pre_hook(count(name, each)) for name, each in attentions.items()]
    try:
        for batch in batches:
            for turn in model.turns:
                model.loss(batch, turn)
    finally:
        for hook in hooks:
            hook.remove()
    return votes


def strongest(groups: Groups, votes: Tensor) -> list[int]:
    """Return the head of each group with the most votes, in order; the first of those with as many."""
    return sorted(max(heads, key=lambda head: float(votes[head])) for heads in groups.heads())


def without_heads(model: Model, kept: dict[str, list[int]]) -> Model:
    """Return a copy of `model` that has only the heads `kept` of each attention with grouped heads. It
    computes what `model` does with the other heads' outputs set to 0.

    Args:
        model: the model. It is not changed.
        kept: heads by name of the attention, as many as there are groups.
    """
    pruned = copy.deepcopy(model)
    for name, attention in grouped(pruned).items():
        d = attention.head_dim
        chosen = torch.tensor([head * d + i for head in kept[name] for i in range(d)], device=pruned.device)
        rows = torch.cat([part * attention.heads[0] * d + chosen for part in range(3)])
        attention.qkv = _rows(attention.qkv, rows)
        attention.out = _columns(attention.out, chosen)
        attention.heads = [len(kept[name])] * 3
        attention.groups = HeadGroupsConfig()
    for module in reversed(list(pruned.modules())):  # a model after its parts
        own: dict[str, Any] = vars(module)
        if is_dataclass(own.get("config")):
            own["config"] = _pruned_config(own["config"])
        update: Any = getattr(module, "update_config", None)  # of a model that holds the config of a part
        if update is not None:
            update()
    return pruned


def _rows(linear: nn.Linear, rows: Tensor) -> nn.Linear:
    """Return the linear layer with some of the outputs."""
    return _linear(linear.weight[rows], None if linear.bias is None else linear.bias[rows])


def _columns(linear: nn.Linear, columns: Tensor) -> nn.Linear:
    """Return the linear layer with some of the inputs."""
    return _linear(linear.weight[:, columns], linear.bias)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, weight.device, weight.dtype)
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def _pruned_config(config: Any) -> Any:
    """Return a config with one head per group in each of its transformers."""
    if isinstance(config, TransformerConfig) and config.head_groups.count:
        return replace(
            config,
            heads=config.head_groups.count,
            kv_heads=None,
            head_width=config.head_dim,
            head_groups=HeadGroupsConfig(),
        )
    if not is_dataclass(config) or isinstance(config, type):
        return config
    old = {field.name: getattr(config, field.name) for field in fields(config) if field.init}
    new = {name: _pruned_config(value) for name, value in old.items()}
    return replace(config, **new) if new != old else config
