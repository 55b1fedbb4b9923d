"""Model and Generator: the classes that every family derives from."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, final

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from torch import Tensor, nn

from genmodels.abilities import ability
from genmodels.card import model_card, without_local_pictures
from genmodels.conditions import UNCONDITIONAL, Condition, ConditionConfig, condition_of
from genmodels.hub import folder_of
from genmodels.nn.head_groups import with_groups
from genmodels.nn.router import commit, with_balance
from genmodels.safety import checking, without_checker
from genmodels.saving import MODEL_FILES, from_dict, read_header, write_model
from genmodels.types import Batch, Noise
from genmodels.weights import load_model
from genmodels.writing import replacing_files

if TYPE_CHECKING:
    from genmodels.pictures import ImageList


class Model(nn.Module, PyTorchModelHubMixin, ABC):
    """A network with a loss to be minimised. A saved model is complete: weights, config and card.

    A family sets `family` and `Config`, implements `loss`, and may override the hooks. Methods
    marked final are the same for every family. `genmodels.abilities` lists what models can do.
    """

    family: ClassVar[str]
    Config: ClassVar[type]
    """Frozen dataclass of the architecture and the loss. `size` is the side of the images."""
    whole_batch: ClassVar[bool] = False
    """Whether the loss compares the images of a batch, as contrastive losses do, so that it cannot
    be split into micro-batches. With several processes, such a loss gathers their parts itself."""
    least_images: ClassVar[int] = 1
    """Smallest number of training images."""
    further_files: ClassVar[tuple[str, ...]] = ()
    """Names of the files that `save_files` may write, such as tokenizer.json."""

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        self._card: str | None = None

    # ---- implemented by a family ----

    @abstractmethod
    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of one turn.

        Args:
            batch: images with their conditions and noise. The loss uses no other random numbers.
            turn: one of `turns`.

        Returns:
            The scalar to minimise, and scalars to log. Both are means over the batch, not sums.
        """

    # ---- hooks ----

    @property
    def turns(self) -> tuple[str, ...]:
        """Names of the optimisers of one step, in order, such as critic and generator."""
        return ("model",)

    def parameters_for(self, turn: str) -> Iterator[nn.Parameter]:
        """Return the parameters that the optimiser of `turn` updates."""
        return self.parameters()

    def initialise(self, images: Iterable[Tensor]) -> None:
        """Initialise from batches of training images (N, 3, H, W) in [-1, 1], by closed forms or
        k-means, once before the first step of a new run. Optional.

        It must be deterministic, so that all processes agree.
        """

    def after_step(self) -> None:
        """Update statistics after an optimiser step, reduced over processes. Overrides call super."""
        commit(self)

    def calibrate(self, images: Iterable[Tensor]) -> None:
        """Estimate what gradients do not learn, such as latent statistics or densities, on batches
        of training images (N, 3, H, W) in [-1, 1]. Optional.

        It is called on the EMA weights before they are displayed or saved, and is deterministic.
        """

    def diagnose(self, seen: Tensor, held_out: Tensor) -> tuple[dict[str, float], list[str]]:
        """Compute metrics of how training goes, and warnings. Optional.

        The training loop calls it with --evaluate-every on the trained weights, in eval mode and
        without gradients, on training images and held-out ones, each (N, 3, H, W) in [-1, 1].
        """
        return {}, []

    def prepare(self, images: Iterable[Tensor]) -> None:
        """Measure what an imported codec lacks on training images, as `calibrate` does. Optional."""

    def check_complete(self) -> None:
        """Raise ValueError if the model needs another model to be trained or used."""

    def save_files(self, folder: Path) -> None:
        """Write `further_files` beside the weights. Optional."""

    def load_files(self, folder: Path) -> None:
        """Read `further_files`, or raise ValueError if they do not belong to the weights. Optional."""

    # ---- the same for every family ----

    def can(self, name: str) -> bool:
        """Return whether the model has the ability `name` of `genmodels.abilities.ABILITIES`.

        Raises:
            ValueError: if there is no such ability.
        """
        return all(getattr(type(self), method, None) is not None for method in ability(name).methods)

    @property
    def kind(self) -> str:
        """Name of this kind of model in messages: its family, and whether it is over a codec."""
        return self.family

    @property
    def trained(self) -> Model:
        """The part that is trained: the model itself, or the prior of a model over a codec."""
        return self

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    @property
    def conditions(self) -> ConditionConfig:
        """What the model can be conditioned on: the field `condition` of its config, if any."""
        return getattr(self.config, "condition", UNCONDITIONAL)

    def name_classes(self, names: tuple[str, ...]) -> None:
        """Record the names of the classes that the model is conditioned on in its config."""
        named = dataclasses.replace(self.conditions, class_names=names)
        self.config = dataclasses.replace(self.config, condition=named)

    @final  # type: ignore[misc]  # torch declares forward as a variable
    def forward(self, batch: Batch, turn: str = "model") -> tuple[Tensor, dict[str, Tensor]]:
        """Compute `loss`, and add the auxiliary losses of experts and head groups. It is called as a
        module, so that DistributedDataParallel sees every step."""
        if not isinstance(batch, Batch):
            raise TypeError(
                f"model(batch) computes the loss of a Batch, got {type(batch).__name__}: call "
                "model(Batch(images, noise)) to train, and model.generate(n) to sample"
            )
        return with_groups(self, *with_balance(self, *self.loss(batch, turn)))

    @final
    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Return README.md of a saved model: the one that it was loaded with, or a new one."""
        return ModelCard(self._card or model_card(self))

    @final
    def save_pretrained(self, save_directory: str | Path, **settings: Any) -> str | None:
        """Write the model to a folder, as a whole: if this fails, an earlier model there remains."""
        folder = Path(save_directory)
        with replacing_files(folder, (*self.further_files, *MODEL_FILES)) as draft:
            result = super().save_pretrained(draft, **{"repo_id": folder.name} | settings)
            if (folder / "README.md").exists():  # it may have been edited
                (draft / "README.md").unlink()
        return result

    @final
    def _save_pretrained(self, save_directory: Path) -> None:
        write_model(save_directory, self.family, self.config, self.state_dict())
        self.save_files(save_directory)

    @classmethod
    @final
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, safety_checker: bool = True, **hub: Any
    ) -> Self:
        """Load a saved model of this family, in eval mode and in the precision it was saved in.

        Args:
            pretrained_model_name_or_path: a run or model folder, or an id on the Hub.
            safety_checker: False leaves out the safety checker, if the model has one.
            **hub: revision, token, cache_dir, force_download, local_files_only.

        Raises:
            ValueError: if there is no complete model of this family.
        """
        folder = folder_of(pretrained_model_name_or_path, **hub)
        file = folder / "config.json"
        header = read_header(file)
        if header["family"] != cls.family:
            raise ValueError(f"{folder} holds a {header['family']!r} model, not {cls.family!r}")
        config = from_dict(cls.Config, header["model"], str(file))
        config = config if safety_checker else without_checker(config)
        try:
            model = load_model(lambda: cls(config), str(file), folder / MODEL_FILES[0], Model, header["precision"])
        except FileNotFoundError:
            raise ValueError(f"{folder} has config.json, but model.safetensors is not there: save it again") from None
        model.load_files(folder)
        card = folder / "README.md"
        model._card = without_local_pictures(card.read_text(errors="replace")) if card.is_file() else None
        return model.eval()


class Generator(Model):
    """A model that samples images.

    A family implements `loss` and `sample`, and sets `Options`, the dataclass of its options::

        >>> import torch
        >>> from genmodels import VAE, VAEConfig, Batch, Noise, open_data
        >>> from genmodels.data.batches import image_batches
        >>> train = open_data("toyfaces", size=64).split("train")
        >>> model = VAE(VAEConfig(size=64))
        >>> model.initialise(image_batches(train, limit=2048))
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        >>> for step, images in enumerate(image_batches(train, batch_size=64)):
        ...     noise = Noise.for_images(seed=0, indices=range(64 * step, 64 * step + len(images)))
        ...     loss, metrics = model(Batch(images, noise, step=step))
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
        ...     model.after_step()
        >>> model.calibrate(image_batches(train, limit=2048))
        >>> model.eval().generate(16, seed=0).shape
        torch.Size([16, 3, 64, 64])

    `genmodels.fit` is this loop with averaged weights, checkpoints, processes and time budgets.
    """

    Options: ClassVar[type]
    safety_checker: Callable[[Tensor], Tensor] | None = None
    image_filter: Callable[[Tensor], Tensor] | None = None
    """They return which images (N, 3, H, W) are not shown, bool (N,). See `genmodels.safety.checking`."""

    @abstractmethod
    def sample(self, noise: Noise, condition: Condition, options: Any) -> Tensor:
        """Sample one image per stream of `noise`.

        Args:
            noise: N streams. Sampling uses no other random numbers.
            condition: N rows.
            options: an instance of `options_class`.

        Returns:
            float (N, 3, H, W) in [-1, 1].
        """

    @property
    def options_class(self) -> type:
        """The dataclass of sampling options of this instance."""
        return type(self).Options

    @final
    def options(self, **overrides: Any) -> Any:
        """Return the sampling options with `overrides` applied.

        Raises:
            ValueError: if there is no such option.
        """
        known = [f.name for f in dataclasses.fields(self.options_class)]
        for name in overrides:
            if name not in known:
                raise ValueError(
                    f"unknown sampling option {name!r} for {self.kind}; known: {', '.join(known) or 'none'}"
                )
        return self.options_class(**overrides)

    @final
    def generate(
        self,
        n: int,
        seed: int = 0,
        condition: Condition | Mapping[str, Any] | None = None,
        *,
        batch_size: int = 64,
        **options: Any,
    ) -> Tensor:
        """Sample `n` images.

        Image i of a seed is the same for any `n` and `batch_size`, up to rounding.

        Args:
            n: number of images.
            seed: seed of the images.
            condition: one row per image; a dict such as {"Smiling": 1} or {"prompt": "a man"}; or
                None for unconditional samples.
            batch_size: number of images computed at a time.
            **options: fields of `Options`, such as `temperature`.

        Returns:
            float32 (n, 3, H, W) in [-1, 1].

        Raises:
            ValueError: if n or batch_size is less than 1, or an option or condition does not fit
                the model.
        """
        for name, value in (("n", n), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.check_complete()
        settings, conditions = self.options(**options), condition_of(self, condition, n)
        parts = []
        with checking(self) as checked, torch.inference_mode():
            for start in range(0, n, batch_size):
                rows = slice(start, min(start + batch_size, n))
                noise = Noise.for_images(seed, range(rows.start, rows.stop), self.device)
                parts.append(checked(self.sample(noise, conditions[rows].to(self.device), settings)).float())
        # Copied outside of inference mode, so that the images can be used in training.
        return torch.cat(parts)

    @final
    def images(
        self, n: int, seed: int = 0, condition: Condition | Mapping[str, Any] | None = None, **how: Any
    ) -> ImageList:
        """Sample as `generate` does: a list of PIL images, which a notebook displays as a grid."""
        from genmodels.pictures import ImageList, to_uint8

        return ImageList.from_arrays(to_uint8(self.generate(n, seed, condition, **how)))
