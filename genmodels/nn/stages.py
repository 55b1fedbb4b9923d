"""Models as a sequence of parts, which processes can divide (pipeline parallelism)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from genmodels.nn.transformer import TransformerConfig
from genmodels.types import Batch

Carried = tuple[Tensor, ...]
"""What one part of a model passes to the next. All of them need gradients."""


class Stages(NamedTuple):
    """The loss of a model, in parts.

    It is loss(through(embed(drawn), 0, len(blocks)), drawn) of drawn = prepare(batch).
    """

    prepare: Callable[[Batch], Any]
    """Draws everything random that the loss of a batch needs. It uses no weights that are trained."""
    embed: Callable[[Any], Carried]
    """Computes the inputs of the first block."""
    through: Callable[[Carried, int, int], Carried]
    """Applies the blocks from one index to before another."""
    loss: Callable[[Carried, Any], tuple[Tensor, dict[str, Tensor]]]
    """Computes the loss and metrics of `Model.loss` from the outputs of the last block."""
    blocks: Sequence[tuple[nn.Module, ...]]
    """The modules that only one block uses, for each block."""
    last: tuple[nn.Module, ...]
    """The modules that only `loss` uses. All others are those of `embed`."""


def check_stages(family: str, transformer: TransformerConfig, **unsupported: bool) -> None:
    """Check that a model has only what can be divided into stages.

    Args:
        family: of the model.
        transformer: its blocks.
        **unsupported: whether the model has something else that prevents it, by name.

    Raises:
        ValueError: naming the setting that prevents it.
    """
    unsupported |= {"experts": transformer.experts.count > 0, "head_groups": transformer.head_groups.count > 0}
    for name, is_used in unsupported.items():
        if is_used:
            raise ValueError(f"--pipeline-stages does not work with {name} of this {family}: leave one of them out")
