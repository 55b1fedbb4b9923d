"""Direct preference optimisation (arXiv 2305.18290), and Diffusion-DPO (arXiv 2311.12908)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.alignment.pairs import as_input
from genmodels.base import Generator
from genmodels.conditions import Condition, ConditionConfig, Text
from genmodels.types import Batch, Noise

BETA, DIFFUSION_BETA = 0.1, 1_000.0
"""Default beta of DPO, and of Diffusion-DPO, where it multiplies differences of mean squared errors."""


def preference_losses(policy: Tensor, reference: Tensor, beta: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the DPO loss of each pair (arXiv 2305.18290, equation 7), and what is logged.

    Args:
        policy: log-probabilities of the chosen and the rejected samples under the model, (N, 2).
        reference: the same under the reference model.
        beta: strength of the KL penalty.

    Returns:
        -log sigmoid(margin), (N,), and means over the pairs.
    """
    rewards = beta * (policy - reference)  # (N, 2)
    margins = rewards[:, 0] - rewards[:, 1]
    metrics = {
        "chosen_reward": rewards[:, 0].mean(),
        "rejected_reward": rewards[:, 1].mean(),
        "margin": margins.mean(),
        "accuracy": (margins.sign() / 2 + 0.5).mean(),
        "beta": torch.as_tensor(beta),
    }
    return -F.logsigmoid(margins), {name: value.detach() for name, value in metrics.items()}


class DPO(Generator):
    """A saved model under the loss of DPO.

    It samples and is saved as that model, the policy: what `fit` writes is an ordinary model of its
    family, with nothing of this class. `batch.latents` are pairs (N, 2, *shape). For a policy with
    probabilities, `batch.features` are those of the reference model, (N, 2). Other policies are
    compared with a frozen copy of themselves, under the same noise.

    Args:
        policy: the model to train, which is also the reference as it is now.
        beta: strength of the KL penalty. None: `BETA` or, for a diffusion model, `DIFFUSION_BETA`.
        prompts: whether the pairs have prompts.

    Raises:
        ValueError: if the policy has neither probabilities nor a loss for each image.
    """

    def __init__(self, policy: Any, beta: float | None = None, prompts: bool = False):
        super().__init__(policy.config)
        self.policy = policy
        self.exact = policy.trained.can("log_probability")
        if not (self.exact or policy.trained.can("denoising_losses")):
            raise ValueError(
                f"{policy.kind} models have no likelihood, which DPO needs: use an autoregressive or a diffusion model "
                "(not a mean flow)"
            )
        default = BETA if self.exact else DIFFUSION_BETA
        self.beta = default if beta is None else beta
        self._prompts = prompts
        self._reference = None if self.exact else losses_of_copy(policy.trained)
        if (projector := getattr(policy.trained, "projector", None)) is not None:
            # Of the alignment with an extractor, which is no part of this loss: several processes would wait for its
            # gradient.
            projector.requires_grad_(False)

    # ---- the loss ----

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        if batch.latents is None or (self.exact and batch.features is None):
            raise ValueError("a batch of DPO needs pairs: use the data of genmodels.alignment.training.as_data")
        n = len(batch.latents)
        samples = as_input(batch.latents.transpose(0, 1).flatten(0, 1))  # (2 N, *shape): chosen, then rejected
        condition = batch.condition.map(lambda rows: torch.cat([rows, rows]))
        if self._reference is None:
            assert batch.features is not None
            policy, reference = self.policy.trained.log_probability(samples, condition), batch.features
        else:
            # The same time and noise for both samples, and for both models.
            noise = [Noise(batch.noise.seeds * 2, samples.device) for _ in range(2)]
            policy = -self.policy.trained.denoising_losses(samples, condition, noise[0])
            reference = -self._reference(samples, condition, noise[1]).view(2, n).T
        policy = policy.view(2, n).T
        losses, metrics = preference_losses(policy, reference, self.beta)
        if self.exact:  # the pairs are samples of the reference model: an estimate of KL(reference, policy) in nats
            metrics["kl"] = (reference - policy).detach().mean()
        return losses.mean(), metrics

    def parameters_for(self, turn: str) -> Iterator[nn.Parameter]:
        return self.policy.parameters_for(turn)  # type: ignore[no-any-return]

    def train(self, mode: bool = True) -> Self:
        """The policy stays in eval mode: without dropout, as the reference."""
        super().train(mode)
        self.policy.eval()
        return self

    # ---- the policy, in all other respects ----

    family = property(lambda self: self.policy.family)  # type: ignore[assignment]
    kind = property(lambda self: self.policy.kind)  # type: ignore[assignment]
    trained = property(lambda self: self.policy.trained)  # type: ignore[assignment]
    further_files = property(lambda self: self.policy.further_files)  # type: ignore[assignment]
    options_class = property(lambda self: self.policy.options_class)  # type: ignore[assignment]
    safety_checker = property(lambda self: self.policy.safety_checker)  # type: ignore[assignment]
    tokenizer = property(lambda self: self.policy.tokenizer)

    @property
    def conditions(self) -> ConditionConfig:
        return self.policy.conditions  # type: ignore[no-any-return]

    def can(self, name: str) -> bool:
        if name == "tokenize":  # the captions of a batch
            return self._prompts and bool(self.policy.can(name))
        return name == "sample" and bool(self.policy.can(name))

    def tokenize(self, texts: Any) -> Text:
        return self.policy.tokenize(texts)  # type: ignore[no-any-return]

    def name_classes(self, names: tuple[str, ...]) -> None:
        """The policy keeps the names of its classes."""

    def sample(self, noise: Noise, condition: Condition, options: Any) -> Tensor:
        return self.policy.sample(noise, condition, options)  # type: ignore[no-any-return]

    def check_complete(self) -> None:
        self.policy.check_complete()

    def save_files(self, folder: Path) -> None:
        self.policy.save_files(folder)

    def state_dict(self, *args: Any, **how: Any) -> Any:
        """The weights of the policy, under their own names."""
        return self.policy.state_dict(*args, **how)

    def load_state_dict(self, state_dict: Any, *args: Any, **how: Any) -> Any:
        return self.policy.load_state_dict(state_dict, *args, **how)


def losses_of_copy(model: Any) -> Callable[[Tensor, Condition, Noise], Tensor]:
    """Return `denoising_losses` of a frozen copy of `model`. Because it is held by a function and not
    by a module, the copy is neither trained, averaged nor saved, and copies of a DPO share it."""
    twin = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def losses(samples: Tensor, condition: Condition, noise: Noise) -> Tensor:
        result: Tensor = twin.to(samples.device).denoising_losses(samples, condition, noise)
        return result

    return losses
