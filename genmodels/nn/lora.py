"""Low-rank updates of linear layers (LoRA, arXiv 2106.09685), through the package peft."""

from __future__ import annotations

from typing import Any

from torch import nn


def add_lora(module: nn.Module, rank: int) -> None:
    """Add low-rank updates to all linear layers inside `module`, which are zero at first. Only they
    are trained then.

    Args:
        module: changed in place.
        rank: rank of the updates.

    Raises:
        ValueError: if peft is not installed.
    """
    peft = import_peft()
    targets = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, lora_dropout=0.0)
    peft.inject_adapter_in_model(config, module)


def merge_lora(module: nn.Module) -> None:
    """Add the low-rank updates inside `module` to the matrices, and remove them."""
    layers = import_peft().tuners.lora.LoraLayer
    for name, layer in list(module.named_modules()):
        if isinstance(layer, layers):
            layer.merge()
            parent, _, own = name.rpartition(".")
            setattr(module.get_submodule(parent), own, layer.get_base_layer())


def import_peft() -> Any:
    """Import peft.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        import peft
    except ImportError:
        raise ValueError("LoRA needs the package peft: pip install 'genmodels[lora]'") from None
    return peft
