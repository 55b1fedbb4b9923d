"""Tensor parallelism (arXiv 1909.08053): each process computes a part of the heads of attention and
of the channels of the MLP of every block.

The layers become DTensors, through `parallelize_module` of torch. Two matrices that are fused in one
layer, such as those of queries, keys and values, must not be cut as one: process 0 would have
queries only. So the rows of such a layer are reordered first, and each process has a part of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from genmodels.base import Model
from genmodels.nn.block import Block
from genmodels.nn.head_groups import grouped
from genmodels.nn.mixer import Branch, Layers


def divisible_branches(model: Model, trained: Iterable[str]) -> Iterator[tuple[str, Branch, Layers]]:
    """Iterate over the branches of transformer blocks that can be divided, with their names.

    Args:
        model: the model.
        trained: names of the parameters that are trained. Other blocks, such as those of a frozen text
            encoder, are left out.
    """
    above = {name.rpartition(".")[0] for name in trained}
    for block_name, block in model.named_modules():
        for name, branch in block.named_children() if isinstance(block, Block) else ():
            layers = branch.divisible() if isinstance(branch, Branch) else None
            if isinstance(branch, Branch) and layers is not None and f"{block_name}.{name}.{layers.rows[0]}" in above:
                yield f"{block_name}.{name}", branch, layers


def check_divisible(model: Model, parts: int) -> None:
    """Check that `parts` processes can divide the blocks of `model`.

    Raises:
        ValueError: if there is nothing to divide, or something is not divisible by `parts`.
    """
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    branches = list(divisible_branches(model, trained))
    if not branches:
        raise ValueError(
            f"--tensor-parallel divides attention and MLPs of transformers, and this {model.kind} has none: leave it "
            "out"
        )
    if grouped(model):
        raise ValueError("--tensor-parallel does not work with head_groups, which compare all heads: leave one out")
    for _, _, layers in branches:
        if layers.units % parts:
            raise ValueError(f"--tensor-parallel {parts} must divide {layers.name} of the transformer, {layers.units}")


def divide(model: Model, trained: Iterable[str], mesh: DeviceMesh) -> dict[str, Tensor]:
    """Divide the blocks of `model` in place over the processes of `mesh`.

    Args:
        model: a model with the same weights on every process.
        trained: names of the parameters that are trained.
        mesh: of one dimension.

    Returns:
        The order of the rows of each weight and bias that was reordered, by name.
    """
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    orders: dict[str, Tensor] = {}
    for name, branch, layers in list(divisible_branches(model, trained)):
        for layer, outputs in layers.columns.items():
            linear = branch.get_submodule(layer)
            for key, parameter in linear.named_parameters():
                if len(outputs) > 1:
                    order = orders[f"{name}.{layer}.{key}"] = row_order(outputs, mesh.size()).to(parameter.device)
                    parameter.data = parameter.data[order]
            parallelize_module(linear, mesh, ColwiseParallel())
        for layer in layers.rows:
            parallelize_module(branch.get_submodule(layer), mesh, RowwiseParallel())
        branch.divide(mesh.size(), mesh.get_group())
    return orders


def row_order(outputs: Sequence[int], parts: int) -> Tensor:
    """Order of the rows of fused matrices in which process r has the r-th part of each of them.

    Args:
        outputs: number of rows of each matrix, divisible by `parts`.
        parts: number of processes.
    """
    first, pieces = 0, []
    for count in outputs:
        pieces.append(torch.arange(first, first + count).view(parts, -1))
        first += count
    return torch.cat(pieces, dim=1).flatten()
