"""Linear layers of transformer blocks in 8 bits, by torchao: training in FP8 (arXiv 2209.05433), and
sampling with weights of 8 bits.

Weights stay where they are in training: a layer rounds them, its inputs and their gradients to FP8
for each matrix product, so that what is saved has full precision.
"""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

import torch
from torch import nn

from genmodels.nn.block import Block
from genmodels.nn.mixer import Branch
from genmodels.usage import without_warnings

Quantization = Literal["int8", "fp8"]
MULTIPLE = 16
"""FP8 matrix products of GPUs need sides that are multiples of this."""


def check_installed(what: str) -> None:
    """Raise ValueError if torchao, which `what` needs, is not installed."""
    if importlib.util.find_spec("torchao") is None:
        raise ValueError(f"{what} needs torchao: pip install 'genmodels[fp8]'")


def block_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of attention and MLP of the transformer blocks of `model`, by name. Those
    with low-rank updates, which are other modules, are left out."""
    layers: dict[str, nn.Linear] = {}
    for block_name, block in model.named_modules():
        for name, branch in block.named_children() if isinstance(block, Block) else ():
            declared = branch.divisible() if isinstance(branch, Branch) else None
            for layer in (*declared.columns, *declared.rows) if declared is not None else ():
                linear = branch.get_submodule(layer)
                if isinstance(linear, nn.Linear):
                    layers[f"{block_name}.{name}.{layer}"] = linear
    return layers


def trained_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Those of `block_layers` that are trained."""
    return {name: layer for name, layer in block_layers(model).items() if layer.weight.requires_grad}


def check_fp8(model: nn.Module) -> None:
    """Check that the blocks of `model` can be trained in FP8.

    Raises:
        ValueError: if torchao is not installed, there are no such blocks, or a layer has a side that
            is no multiple of 16; names the layers.
    """
    check_installed("--mixed-precision fp8")
    layers = trained_layers(model)
    if not layers:
        raise ValueError("--mixed-precision fp8 is for transformers, and this model has no such blocks: use bf16")
    wrong = {
        f"{name.rpartition('.')[2]} {layer.in_features} -> {layer.out_features}": None
        for name, layer in layers.items()
        if layer.in_features % MULTIPLE or layer.out_features % MULTIPLE
    }
    if wrong:
        raise ValueError(
            f"--mixed-precision fp8 needs layers whose sides are multiples of {MULTIPLE}, got {', '.join(wrong)}: "
            "change width, heads or hidden of the transformer, or use bf16"
        )


def has_fp8(device: torch.device) -> bool:
    """Return whether `device` multiplies matrices in FP8. It is emulated elsewhere."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def use_fp8(model: nn.Module, device: torch.device) -> str:
    """Let the linear layers of the blocks of `model` compute in FP8, in place.

    Returns:
        One line that names them and the layers that are left out.
    """
    with without_warnings("torch.utils._pytree"):
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    layers = trained_layers(model)
    emulate = not has_fp8(device)
    convert_to_float8_training(
        model, config=Float8LinearConfig(emulate=emulate), module_filter_fn=lambda _, name: name in layers
    )
    others = {
        name: None
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.weight.requires_grad and name not in layers
    }
    how = ", emulated, because this device has no FP8: use it to check a loss, not to save time" if emulate else ""
    left = ", ".join(dict.fromkeys(_numberless(name) for name in others))
    kinds = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in layers))
    return f"fp8: {len(layers)} linear layers of the blocks ({kinds}){how}; not in fp8: {left or 'none'}"


def without_fp8(model: nn.Module) -> None:
    """Undo `use_fp8`. The weights stay the same objects."""
    if importlib.util.find_spec("torchao") is None:
        return
    for name, layer in block_layers(model).items():
        if type(layer) is nn.Linear:
            continue
        above, _, last = name.rpartition(".")
        plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        plain.weight, plain.bias = layer.weight, layer.bias
        setattr(model.get_submodule(above), last, plain)


def quantize(model: nn.Module, kind: Quantization) -> str:
    """Round the weights of the linear layers of the blocks to 8 bits, in place, for sampling.

    Each row of a matrix has a scale. Products are computed in the precision of the inputs.

    Args:
        model: the model. Its weights cannot be trained or saved afterwards.
        kind: int8, or fp8 (e4m3).

    Returns:
        One line with the number of layers and the bytes of all weights before and after.

    Raises:
        ValueError: if torchao is not installed, or there are no such layers.
    """
    check_installed(f"--quantize {kind}")
    with without_warnings("torch.utils._pytree"):
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    layers = block_layers(model)
    if not layers:
        raise ValueError(f"--quantize {kind} is for transformers, and this model has no such blocks: leave it out")
    everything = sum(p.numel() * p.element_size() for p in model.parameters())
    before = sum(layer.weight.numel() * layer.weight.element_size() for layer in layers.values())
    after = sum(layer.weight.numel() + 4 * layer.out_features for layer in layers.values())
    config: Any = Int8WeightOnlyConfig() if kind == "int8" else Float8WeightOnlyConfig()
    quantize_(model, config, filter_fn=lambda _, name: name in layers)
    now = everything - before + after
    return f"{len(layers)} linear layers in {kind}: weights of {now / 1e6:.3g} MB instead of {everything / 1e6:.3g} MB"


def _numberless(name: str) -> str:
    """modulations.3 -> modulations."""
    return ".".join(part for part in name.split(".") if not part.isdigit())
