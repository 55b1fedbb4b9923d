"""Optimisers (AdamW, Muon), the learning-rate schedule, and the optimiser's state as named
tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from genmodels.distributed import is_sharded
from genmodels.nn.mixer import Branch
from genmodels.training.shard import like, own


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser and its schedule."""

    name: Literal["adamw", "muon"] = "adamw"
    """muon: orthogonalised momentum for the hidden matrices of transformers, AdamW for all other
    parameters."""
    lr: float = 1e-3
    """Peak learning rate. Muon's updates are scaled to the size of AdamW's, so both use the same
    rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay rates of AdamW's two moving averages."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices and convolution kernels. Biases, gains and other vectors
    have none."""
    warmup: int = 100
    """Steps over which the learning rate rises from 0, linearly."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate decreases to 0 over the run (constant: it does not)."""
    clip: float | None = None
    """Largest gradient norm; larger gradients are scaled down to it. None: no clipping."""

    def check(self) -> None:
        """Raises ValueError for a value that cannot work."""
        if self.name not in ("adamw", "muon"):
            raise ValueError(f"--optim.name must be adamw or muon, got {self.name!r}")
        if not self.lr > 0:
            raise ValueError(f"--optim.lr must be above 0, got {self.lr}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"--optim.betas must be in [0, 1), got {self.betas}")
        if self.weight_decay < 0 or self.warmup < 0:
            raise ValueError(f"--optim.weight-decay and --optim.warmup must not be negative, got {self}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"--optim.clip must be above 0 (or None), got {self.clip}")


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimConfig, model: nn.Module) -> Optimizer:
    """AdamW over `parameters`, or Muon over those that may be trained by it and AdamW over the
    others.

    The modules of `model` declare which parameters Muon may train and which have no weight decay,
    see `genmodels.nn.mixer.Branch`. Parameters that no module declares are trained by AdamW, with
    weight decay if they have at least two dimensions.

    Args:
        parameters: to train, some or all of the model's.
        config: optimiser and settings.
        model: the model. Its modules declare which parameters Muon trains and which have no weight
            decay. Its parameters must already be sharded, if they will be.

    Raises:
        ValueError: for Muon when it may train none of the parameters, or one that is declared to
            have no weight decay.
    """
    parameters = list(parameters)
    branches = [module for module in model.modules() if isinstance(module, Branch)]
    no_decay = {id(p) for branch in branches for p in branch.no_decay()}
    if config.name == "adamw":
        return build_adamw(parameters, config, no_decay)
    muon = {id(p) for branch in branches for p in branch.muon()}
    matrices = [p for p in parameters if id(p) in muon]
    others = [p for p in parameters if id(p) not in muon]
    if not matrices:
        raise ValueError("--optim.name muon: this model has no hidden matrices for it; it is for transformers")
    if muon & no_decay:
        raise ValueError("Muon applies weight decay: a parameter cannot be declared in both muon() and no_decay()")
    return MuonAndAdamW(MatrixMuon(matrices, config), build_adamw(others, config, no_decay))


def build_adamw(parameters: list[nn.Parameter], config: OptimConfig, no_decay: set[int]) -> AdamW:
    """AdamW, with weight decay for parameters of at least two dimensions whose id is not in
    `no_decay`.

    Its fused kernel updates in one pass over memory: about three times as fast as the others on a
    CPU.
    """
    decayed = [p for p in parameters if p.ndim >= 2 and id(p) not in no_decay]
    rest = [p for p in parameters if p.ndim < 2 or id(p) in no_decay]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    fused = all(p.device.type in ("cpu", "cuda", "meta") for p in parameters)
    kind = LocalAdamW if any(is_sharded(p) for p in parameters) else AdamW
    return kind([group for group in groups if group["params"]], lr=config.lr, betas=config.betas, fused=fused)


class LocalAdamW(AdamW):
    """torch's AdamW, which updates this process's part of each parameter. Parameters may be divided
    in different ways, which its fused kernel does not take."""

    def _init_group(self, group: Any, *lists: list[Tensor]) -> bool:
        """Append the local parameters, gradients and states of `group` to `lists`."""
        tensors: tuple[list[Tensor], ...] = tuple([] for _ in lists)
        is_complex = super()._init_group(group, *tensors)
        for local, divided in zip(lists, tensors, strict=True):
            local.extend(own(tensor) for tensor in divided)
        return is_complex


class MatrixMuon(Muon):
    """torch's Muon, which also trains stacks of matrices (E, M, N), such as those of experts. Each
    matrix is orthogonalised for itself."""

    def __init__(self, parameters: list[nn.Parameter], config: OptimConfig):
        stacks = [p for p in parameters if p.ndim > 2]
        matrices = [p for p in parameters if p.ndim == 2]
        super().__init__(matrices, config.lr, config.weight_decay, adjust_lr_fn="match_rms_adamw")
        if stacks:  # which the constructor of torch refuses
            self.add_param_group({"params": stacks})

    def _init_group(self, group: Any, *lists: list[Tensor]) -> bool:
        """Append the parameters, gradients and momenta of `group` to `lists`, matrix by matrix."""
        tensors: tuple[list[Tensor], ...] = ([], [], [])
        is_complex = super()._init_group(group, *tensors)
        for matrices, whole in zip(lists, tensors, strict=True):
            for tensor in whole:
                matrices.extend(own(tensor).unbind() if tensor.ndim > 2 else [tensor])
        return is_complex


class MuonAndAdamW(Optimizer):
    """Muon (scaled as in arXiv 2502.16982) and AdamW as one optimiser, with the groups and the
    state of both."""

    def __init__(self, muon: Optimizer, adamw: Optimizer):
        self.parts = (muon, adamw)
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Perform one step of both."""
        for part in self.parts:
            part.step()
            self.state.update(part.state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of both."""
        super().load_state_dict(state_dict)
        self._share()
        for part in self.parts:
            own = {p for group in part.param_groups for p in group["params"]}
            part.state.update({p: state for p, state in self.state.items() if p in own})

    def _share(self) -> None:
        """Share the groups with the parts, so that a learning rate set here is set in the part
        too."""
        first = len(self.parts[0].param_groups)
        self.parts[0].param_groups, self.parts[1].param_groups = self.param_groups[:first], self.param_groups[first:]


def learning_rate(config: OptimConfig, step: int, progress: float) -> float:
    """The learning rate of optimiser step `step` (from 0), `progress` in [0, 1] of the way through
    the run.

    Warm-up counts steps. The decay follows progress, so that it ends with the run for both --steps
    and --minutes.
    """
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    if config.schedule == "cosine":
        return config.lr * warm * (1 + math.cos(math.pi * progress)) / 2
    if config.schedule == "linear":
        return config.lr * warm * (1 - progress)
    return config.lr * warm


STATES = ({"step", "exp_avg", "exp_avg_sq"}, {"momentum_buffer"})
"""Names of the tensors that AdamW and Muon keep for a parameter."""


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimiser's state under flat names, "INDEX.KEY" (17.exp_avg), for safetensors."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": value for index, entry in state.items() for key, value in entry.items()}


def optimizer_names(optimizer: Optimizer, model: nn.Module) -> dict[str, str]:
    """Names of the parameters of `model` by their index in an optimiser over them, as in
    `optimizer_tensors`."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {str(index): names[id(parameter)] for index, parameter in enumerate(parameters)}


def load_optimizer_tensors(
    optimizer: Optimizer, tensors: dict[str, Tensor], place: Callable[[Tensor, Tensor, str], Tensor] | None = None
) -> None:
    """Load the result of `optimizer_tensors` into an optimiser over the same parameters.

    Args:
        optimizer: the optimiser.
        tensors: complete tensors.
        place: returns this process's part of a tensor, given the parameter, the tensor and the
            index of the parameter. Parameters on the meta device are left out.

    Raises:
        ValueError: when the tensors belong to another model's optimiser.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        belongs = index.isdecimal() and int(index) < len(parameters)
        if not belongs or value.shape != (torch.Size() if key == "step" else parameters[int(index)].shape):
            raise ValueError(f"optimizer state {name!r} of shape {tuple(value.shape)} does not belong to this model")
        if parameters[int(index)].is_meta:
            continue
        if value.ndim:
            # The fused kernel iterates over memory, so the state needs the layout of its parameter
            # (channels_last or not).
            parameter = parameters[int(index)]
            value = like(parameter, value) if place is None else place(parameter, value, index)
        state.setdefault(int(index), {})[key] = value
    for at, entry in state.items():
        if entry.keys() not in STATES:
            raise ValueError(f"the optimizer state of parameter {at} is incomplete: it has {', '.join(sorted(entry))}")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
