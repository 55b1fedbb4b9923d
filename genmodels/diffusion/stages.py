"""The loss of a diffusion transformer in parts, which processes can divide."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from genmodels.conditions import Condition
from genmodels.nn.block import Modulation
from genmodels.nn.stages import Carried, Stages, check_stages
from genmodels.types import Noise


class Drawn(NamedTuple):
    """What a loss needs of a batch, including its random numbers."""

    x_0: Tensor
    """Data (N, C, H, W)."""
    condition: Condition
    """Its condition, of which a random part is hidden."""
    t: Tensor
    """Times (N, 1, 1, 1)."""
    eps: Tensor
    """Noise (N, C, H, W)."""
    noise: Noise
    """Streams of further random numbers."""


def transformer_stages(model: Any) -> Stages:
    """Return the parts of the loss of a diffusion transformer.

    The tokens (N, T, D) carry the embedding (N, 1, D) of time and condition with them, from which
    each block computes its modulation.

    Args:
        model: a `genmodels.dit.DiT`.

    Raises:
        ValueError: if the model has something that cannot be divided.
    """
    c = model.config
    check_stages(
        model.family,
        c.transformer,
        **{"the process meanflow": c.process == "meanflow", "text": model.cross_attention is not None},
        **{"masking": c.masking.keep < 1, "alignment": model.projector is not None},
        conditional_mean=bool(c.gaussian and c.conditional_mean and model.condition is not None),
    )

    def embed(drawn: Drawn) -> Carried:
        condition = model.embed(drawn.condition, len(drawn.x_0), drawn.x_0.device)
        x_t = model.process.noisy(drawn.x_0, drawn.eps, drawn.t)
        return model.begin(model.process.scale(drawn.t) * x_t, model.process.time_input(drawn.t).view(-1), condition)

    def through(carried: Carried, first: int, last: int) -> Carried:
        tokens, embedding = carried
        modulation = {i: pairs(model.modulations[i](embedding)) for i in range(first, last)}
        places = model.transformer.places(model.positions)
        return model.transformer.through(tokens, places, modulation, first, last), embedding

    def loss(carried: Carried, drawn: Drawn) -> tuple[Tensor, dict[str, Tensor]]:
        return model.weighted_error(drawn, None, lambda *_: model.end(*carried))

    blocks = list(zip(model.modulations, model.transformer.blocks, strict=True))
    return Stages(model.draw, embed, through, loss, blocks, (model.transformer.norm, model.last_modulation, model.head))


def pairs(parameters: Tensor) -> tuple[Modulation, Modulation]:
    """Split (N, 1, 6 D) into the modulations of the attention and of the MLP of a block."""
    parts = parameters.chunk(6, dim=-1)
    return Modulation(*parts[:3]), Modulation(*parts[3:])
