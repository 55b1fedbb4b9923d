"""Initial weights of transformers."""

from __future__ import annotations

import math

import torch
from torch import nn

from genmodels.nn.mixer import Branch

INIT_STD = 0.02


@torch.no_grad()
def init_weights(model: nn.Module, depth: int) -> None:
    """Initialise every linear layer and embedding inside `model` as GPT-2 does.

    | parameters                                        | initial values                       |
    |---------------------------------------------------|--------------------------------------|
    | weights of linear layers and embeddings           | N(0, 0.02^2)                         |
    | biases of linear layers                           | 0                                    |
    | weights that write to the residual stream         | N(0, 0.02^2 / (2 depth))             |
    | parameters that `Branch.initialise` sets          | as set there                         |
    | all others, such as the gains of norms            | as the module's constructor set them |

    2 depth branches are added to the residual stream; scaling their weights keeps its variance
    independent of depth. `Branch.residual` says which weights these are.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=INIT_STD)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, Branch):
            for weight in module.residual():
                nn.init.normal_(weight, std=INIT_STD / math.sqrt(2 * depth))
            module.initialise()
