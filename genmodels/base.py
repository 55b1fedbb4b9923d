"""Generator: the one class every family of models derives from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Self, final

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from genmodels.types import Batch, Codec, Condition, Noise

FORMAT = 1
"""Version of config.json. A reader refuses a newer one."""


class Generator(nn.Module, PyTorchModelHubMixin, ABC):
    """A generative model of images: a loss to train it, a way to sample it, and a whole copy of itself on disk.

    A family sets `family`, `Config` and `Options`, writes `loss` and `sample`, and may override the hooks
    (`parameters_for`, `initialise`, `after_step`, `calibrate`, `diagnose`). What is marked final is the same for all.
    """

    family: ClassVar[str]
    Config: ClassVar[type]
    """Frozen dataclass of the architecture and the loss. Has `size`, the side of the images in pixels."""
    Options: type
    """Frozen dataclass of what can be chosen at sampling time. An instance may set its own."""
    turns: tuple[str, ...] = ("model",)
    """Who updates in one step, in order. A GAN has ("critic", "generator"); an instance may set its own in __init__."""

    needs_codec: bool = False
    """Whether its samples are a codec's latents, to be decoded: a prior by itself makes no images. An instance may set
    its own."""

    needs_codes: bool = False
    """Whether, as a prior, it learns the codes of a codec that `Quantises`; else continuous latents, which such a codec
    has before it quantises."""

    codec_weights: str = ""
    """Of a prior inside a `Latent`: the hash of the codec whose latents it has learnt."""
    likelihood_name: str = "bits-per-dim"
    """Of a `Likelihood`, what an evaluation calls it: numbers of different kinds have different names."""
    likelihood_by: str = ""
    """Of a `Likelihood`, how it is computed, where it is neither exact nor an upper bound."""
    likelihood_images: int | None = None
    """Of a `Likelihood` that takes long, how many images an evaluation measures it on; None: all."""
    reconstruction_by: str = ""
    """Of what `Reconstructs` without an encoder, how; it becomes part of the scores' names."""
    reconstruction_images: int | None = None
    """Of what takes long to reconstruct, how many images an evaluation measures it on; None: all."""

    def __init__(self, config: Any):
        super().__init__()
        self.config = config

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the attributes it can be asked for, in the order of a `Condition`'s. A conditional family has them
        in its Config."""
        return getattr(self.config, "attributes", ())

    @property
    def classes(self) -> int:
        """How many labels it can be asked for. A class-conditional family has them in its Config."""
        return getattr(self.config, "classes", 0)

    # ---- what a family writes ----

    @abstractmethod
    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar this turn's optimiser lowers, and scalars worth a curve. Means over the batch, not sums."""

    @abstractmethod
    def sample(self, noise: Noise, condition: Condition, options: Any) -> Tensor:
        """One image per stream of `noise`: float (N, 3, H, W) in [-1, 1]. `options` is an instance of `Options`."""

    # ---- what a family may change ----

    def parameters_for(self, turn: str) -> Iterator[nn.Parameter]:
        """What `turn`'s optimiser updates."""
        return self.parameters()

    def check_codec(self, codec: Codec) -> None:
        """Raises ValueError when this prior was not built for the latents of `codec`."""

    def after_step(self) -> None:
        """Commit statistics stashed during the step's forwards (all-reduced here, so that all ranks agree)."""

    def initialise(self, images: Iterable[Tensor]) -> None:
        """Start from the data instead of from chance: closed forms, k-means. Optional.

        The loop calls it once, before the first step of a new run, with some training images in batches of (N, 3, H, W)
        in [-1, 1]. Deterministic, so that all ranks agree.
        """

    def calibrate(self, images: Iterable[Tensor]) -> None:
        """Estimate what is not learnt by gradients, from training images in batches of (N, 3, H, W) in [-1, 1].

        The loop calls it on the EMA weights before they are shown or saved. Latent statistics and densities fitted
        after training belong here. Deterministic: the same weights and images give the same result.
        """

    def diagnose(self, seen: Tensor, held_out: Tensor) -> tuple[dict[str, float], list[str]]:
        """Numbers that tell how training goes, for the curves, and a sentence for each thing that goes wrong. Optional.

        The loop calls it with --evaluate-every, on the weights that are trained, in eval mode without gradients.

        Args:
            seen: images that the model is trained on, (N, 3, H, W) in [-1, 1].
            held_out: images that it is not, likewise.
        """
        return {}, []

    # ---- the same for all ----

    @final  # type: ignore[misc]  # torch declares forward as a variable
    def forward(self, batch: Batch, turn: str = "model") -> tuple[Tensor, dict[str, Tensor]]:
        """`loss`, called as a module so that DistributedDataParallel sees every step."""
        return self.loss(batch, turn)

    @final
    def options(self, **overrides: Any) -> Any:
        """This family's sampling options with `overrides` applied.

        Raises:
            ValueError: for an option the family does not have; the message lists those it has.
        """
        known = [f.name for f in dataclasses.fields(self.Options)]
        for name in overrides:
            if name not in known:
                raise ValueError(
                    f"unknown sampling option {name!r} for {self.family}; known: {', '.join(known) or 'none'}"
                )
        return self.Options(**overrides)

    @final
    def check_whole(self) -> None:
        """Raises ValueError when it makes no images by itself."""
        if self.needs_codec:
            raise ValueError(
                f"this {self.family} is a prior over a codec's latents and makes no images without that codec: sample "
                "the whole model, Latent.over(codec, prior), that it was trained in"
            )

    @final
    @torch.inference_mode()
    def generate(
        self, n: int, seed: int = 0, condition: Condition | None = None, *, batch_size: int = 64, **options: Any
    ) -> Tensor:
        """`n` images, float (n, 3, H, W) in [-1, 1]. Image i of a seed is the same whatever `n` and `batch_size`.

        Args:
            n: how many.
            seed: which.
            condition: one row per image, or None for unconditional samples.
            batch_size: how many at a time.
            **options: fields of `Options`, such as `temperature`.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        self.check_whole()
        chosen = self.options(**options)
        device = next(self.parameters()).device
        with evaluating(self):
            parts = []
            for start in range(0, n, batch_size):
                rows = slice(start, min(start + batch_size, n))
                noise = Noise.for_images(seed, range(rows.start, rows.stop), device)
                wanted = (condition or Condition())[rows].to(device)
                parts.append(self.sample(noise, wanted, chosen))
            return torch.cat(parts)

    @final
    def _save_pretrained(self, save_directory: Path) -> None:
        save_directory.mkdir(parents=True, exist_ok=True)
        # Weights first: a folder with a config.json is a whole model.
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, save_directory / "model.safetensors")
        header = {"format": FORMAT, "family": self.family, "model": dataclasses.asdict(self.config)}
        config = save_directory / "config.json"
        config.write_text(json.dumps(header, indent=2) + "\n")
        # safetensors lets only the owner read; weights are as public as the folder they are put in.
        (save_directory / "model.safetensors").chmod(config.stat().st_mode)

    @classmethod
    @final
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **_: Any,
    ) -> Self:
        def path_of(name: str) -> Path:
            if Path(model_id).is_dir():
                return Path(model_id) / name
            return Path(
                hf_hub_download(
                    model_id,
                    name,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            )

        header = read_header(path_of("config.json"))
        if header["family"] != cls.family:
            raise ValueError(f"{model_id} holds a {header['family']!r} model, not {cls.family!r}")
        model = cls(from_dict(cls.Config, header["model"], where=f"{model_id}/config.json"))
        weights = path_of("model.safetensors")
        try:
            model.load_state_dict(load_file(weights))
        except FileNotFoundError:
            raise ValueError(
                f"{model_id}: config.json is there but model.safetensors is not: save the model again"
            ) from None
        except (SafetensorError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{weights}: not the weights of this config ({reason}); the file is damaged or mixed up"
            ) from None
        return model.eval()


class evaluating:  # noqa: N801  (a context manager that reads as a word)
    """`with evaluating(model):` eval mode inside, each module's own mode restored after."""

    def __init__(self, model: nn.Module):
        self._modes = [(module, module.training) for module in model.modules()]

    def __enter__(self) -> None:
        for module, _ in self._modes:
            module.training = False

    def __exit__(self, *_: object) -> None:
        for module, mode in self._modes:
            module.training = mode


def weights_hash(module: Any) -> str:
    """16 hex digits that identify a model or codec: the beginning of the SHA-256 of its config, weights and buffers."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(module.config), sort_keys=True).encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def read_json(path: Path) -> Any:
    """What the JSON file `path` holds.

    Raises:
        FileNotFoundError: when it is absent.
        ValueError: when it is no JSON; in one line.
    """
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); the file is damaged") from None


def read_header(path: Path) -> dict[str, Any]:
    """config.json of a model folder, checked: {"format", "family", "model"}.

    Raises:
        ValueError: when it is absent, no JSON, not ours, or written by a newer version.
    """
    try:
        header = read_json(path)
    except FileNotFoundError:
        raise ValueError(f"{path.parent} is not a saved model: it has no config.json") from None
    if not isinstance(header, dict) or not {"format", "family", "model"} <= header.keys():
        raise ValueError(f"{path} was not written by genmodels: it lacks format, family or model")
    if header["format"] > FORMAT:
        raise ValueError(
            f"{path} has format {header['format']}; this genmodels reads up to {FORMAT}: upgrade genmodels"
        )
    return header


def from_dict(kind: Any, value: Any, where: str = "config") -> Any:
    """A typed value from plain JSON or YAML: nested dataclasses, tuples, Path, Literal and Optional are restored.

    Raises:
        ValueError: for a field that `kind` does not have; the message says which and where.
    """
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        if value is None:
            return None
        return from_dict(next(k for k in typing.get_args(kind) if k is not type(None)), value, where)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected a group of settings, got {value!r}")
        hints = typing.get_type_hints(kind)
        for name in value:
            if name not in hints:
                raise ValueError(f"{where}: unknown setting {name!r}; known: {', '.join(hints)}")
        fields = {name: from_dict(hints[name], item, f"{where}: {name}") for name, item in value.items()}
        return kind(**fields)  # type: ignore[operator]
    if typing.get_origin(kind) is tuple or kind is tuple:
        inner = typing.get_args(kind) or (Any, ...)
        count = None if inner[-1] is ... else len(inner)
        if not isinstance(value, (list, tuple)) or count not in (None, len(value)):
            raise ValueError(f"{where}: expected a list{f' of {count}' if count else ''}, got {value!r}")
        return tuple(from_dict(inner[0], item, where) for item in value)
    if kind in (str, Path) and not isinstance(value, str):
        raise ValueError(f"{where}: expected text, got {value!r}")
    if kind is bool and not isinstance(value, bool):
        raise ValueError(f"{where}: expected true or false, got {value!r}")
    if kind is Path:
        return Path(value)
    if typing.get_origin(kind) is typing.Literal and value not in typing.get_args(kind):
        raise ValueError(f"{where}: expected one of {', '.join(map(repr, typing.get_args(kind)))}, got {value!r}")
    if kind in (int, float) and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise ValueError(f"{where}: expected a number, got {value!r}")
    return value
