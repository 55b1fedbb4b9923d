"""The modules inside a transformer block: their interface and their initial weights.

A block adds two branches to its residual stream: a mixer, which moves information between tokens
(attention), and an MLP, which works on each token alone. Both derive from `Branch` and declare how
their own parameters are initialised and trained, so that `nn/mixer.py` and `training/optim.py` need
no parameter names.

To add a mixer, write a module with a class derived from `Mixer` and add one entry to `MIXERS` in
nn/block.py.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from genmodels.nn.places import Places

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from genmodels.nn.transformer import TransformerConfig

State = tuple[Tensor, ...]
"""What a mixer keeps of earlier positions: tensors that `Mixer.forward` changes in place."""


class Layers(NamedTuple):
    """The linear layers of a branch that processes can divide (tensor parallelism, arXiv 1909.08053)."""

    columns: dict[str, tuple[int, ...]]
    """Layers of which each process computes a part of the outputs, by name, with the numbers of
    outputs of the matrices that are fused in the layer. Each process has a part of each of them."""
    rows: tuple[str, ...]
    """Layers that each process applies to its part of their inputs. The results are summed."""
    units: int
    """What is divided: heads of keys and values, or channels of an MLP."""
    name: str
    """Name of the setting of the transformer that gives `units`."""


class Branch(nn.Module, ABC):
    """A module whose output is added to the residual stream of a transformer.

    It declares only parameters that it holds itself. Parameters are returned by methods rather than
    stored in lists, because FSDP replaces them.
    """

    @abstractmethod
    def residual(self) -> Iterable[Tensor]:
        """Weights that write to the residual stream. `init_weights` scales them down with depth."""

    def muon(self) -> Iterable[Tensor]:
        """Matrices that Muon may train. By default none; AdamW trains the others."""
        return ()

    def no_decay(self) -> Iterable[Tensor]:
        """Parameters without weight decay, besides those of fewer than two dimensions."""
        return ()

    def initialise(self) -> None:
        """Set initial values other than those of `init_weights`, which calls this last.

        It is called without gradients, and may be called more than once.
        """

    def divisible(self) -> Layers | None:
        """Layers that processes can divide. By default none: every process computes all of them."""
        return None

    def divide(self, processes: int, group: ProcessGroup) -> None:
        """Adapt to layers that are divided over `processes`, those of `group`."""


class Mixer(Branch):
    """A module that moves information between tokens: (N, T, D) -> (N, T, D).

    Args:
        config: of the transformer.
        causal: whether token t may depend on tokens up to t only. Otherwise every token depends on
            every other.
        index: of the block, counted from 0.

    Raises:
        ValueError: when a mixer that is causal by nature is built for a transformer that is not.
    """

    bidirectional: ClassVar[bool] = True
    """Whether it also works without causality. A mixer that only scans forward sets False."""
    rewindable: ClassVar[bool] = False
    """Whether its state at an earlier position can be recovered later, as attention's can."""
    forward_mode: ClassVar[bool] = True
    """Whether its derivative along a direction can be computed forwards, as mean flows need it."""
    needs_mask: ClassVar[bool] = False
    """Whether it reads `places.mask`, which grows with T x S and is not computed otherwise. Other
    mixers must respect `places.starts` and `places.valid`."""

    def __init__(self, config: TransformerConfig, causal: bool, index: int = 0):
        super().__init__()
        if not causal and not self.bidirectional:
            raise ValueError(
                f"{type(self).__name__} sees earlier tokens only and cannot be used in a transformer that is not "
                "causal: choose another mixer"
            )
        self.causal = causal

    @property
    def takes_blocks(self) -> bool:
        """Whether it reads `places.mask` as a block mask of FlexAttention."""
        return False

    @abstractmethod
    def forward(self, x: Tensor, places: Places, state: State | None = None) -> Tensor:
        """Mix tokens.

        Args:
            x: (N, T, D).
            places: where the tokens are.
            state: of earlier positions, from `make_state`; updated in place. Only given to a causal
                mixer.

        Returns:
            (N, T, D).
        """

    @abstractmethod
    def make_state(self, n: int, capacity: int, dtype: torch.dtype, device: torch.device) -> State:
        """The state before the first of up to `capacity` positions, for `n` rows."""


INIT_STD = 0.02
"""Standard deviation of initial weights."""


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
