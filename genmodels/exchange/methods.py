"""Methods of a model that need few evaluations of its networks, as modules of tensors.

They are what `genmodels export` writes as ONNX. torch.export and torch.compile take them too.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from genmodels.conditions import Condition
from genmodels.types import Noise

FEW = 4
"""Largest number of evaluations of a network that one call of an exported method needs."""
ROWS = 2
"""Images in the example that a method is traced with."""


@dataclass(frozen=True)
class Value:
    """An input or output of a method.

    Attributes:
        name: its name in the ONNX file.
        about: what it is, and the range of its values.
        example: an example of `ROWS` rows. The first axis, n, has any length.
        names: names of its columns: attributes or classes; () if they have none.
        classes: number of classes, of labels; 0: it has none.
    """

    name: str
    about: str
    example: Tensor
    names: tuple[str, ...] = ()
    classes: int = 0

    def described(self) -> dict[str, Any]:
        """Return its entry in model.json."""
        shape = ["n", *self.example.shape[1:]]
        kind = str(self.example.dtype).removeprefix("torch.")
        entry = {"name": self.name, "shape": shape, "type": kind, "about": self.about}
        entry |= {"names": list(self.names)} if self.names else {}
        return entry | ({"classes": self.classes} if self.classes else {})


class Method(nn.Module):
    """A method of a model as a module of its own, which maps tensors to one tensor.

    Args:
        model: the model.
        call: calls the method of the model with the tensors.
    """

    def __init__(self, model: nn.Module, call: Callable[..., Tensor]):
        super().__init__()
        self.model = model
        self.call = call

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.call(self.model, *inputs)


@dataclass(frozen=True)
class Exported:
    """A method with all that is needed to write it.

    Attributes:
        name: name of the method, and of the file.
        module: the method.
        inputs: its inputs, in order.
        output: its output, for the inputs' examples.
    """

    name: str
    module: Method
    inputs: tuple[Value, ...]
    output: Value

    @property
    def examples(self) -> tuple[Tensor, ...]:
        """The examples of the inputs."""
        return tuple(value.example for value in self.inputs)


@dataclass(frozen=True)
class Methods:
    """What `methods_of` returns.

    Attributes:
        exported: methods that can be exported, by name.
        left_out: reasons why others cannot, by name; "text": prompts, of a model that takes them.
    """

    exported: dict[str, Exported] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


class GivenNoise(Noise):
    """Noise whose draws are given tensors, in the order in which they are drawn.

    Args:
        draws: tensors (N, ...).
    """

    def __init__(self, draws: Sequence[Tensor]):
        super().__init__(())
        self._draws = iter(draws)

    def normal(self, *shape: int) -> Tensor:
        return next(self._draws)

    def uniform(self, *shape: int) -> Tensor:
        return next(self._draws)


class RecordedNoise(Noise):
    """Noise that keeps its draws in `draws`, with the kind of each: "normal" or "uniform"."""

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu"):
        super().__init__(seeds, device)
        self.draws: list[tuple[str, Tensor]] = []

    def normal(self, *shape: int) -> Tensor:
        self.draws.append(("normal", super().normal(*shape)))
        return self.draws[-1][1]

    def uniform(self, *shape: int) -> Tensor:
        self.draws.append(("uniform", super().uniform(*shape)))
        return self.draws[-1][1]


@torch.no_grad()
def methods_of(model: Any, options: Mapping[str, Any] | None = None) -> Methods:
    """List the methods of a model that can be exported, in float32 on the CPU.

    - `from_latents`, images from vectors, and `draw_latents`, the vectors of samples (unless they
      are the standard normal noise itself), of a model with latent directions;
    - `sample`, of another model, or one with conditions, if a sample needs at most `FEW`
      evaluations of its networks. Random numbers are inputs;
    - `encode` and `decode` of a codec.

    Args:
        model: the model. It is not changed.
        options: sampling options: fields of its `Options`.

    Raises:
        ValueError: if it has none of these methods, or is not whole.
    """
    model.check_complete()
    model = copy.deepcopy(model).to("cpu").float().eval().requires_grad_(False)
    methods = Methods()
    directions = model.can("latent_directions")
    if directions:
        settings = model.options(**options or {})
        for method in _latent_methods(model, settings):
            methods.exported[method.name] = method
    if model.can("sample") and (not directions or _takes_condition(model)):
        settings = model.options(**options or {})
        try:
            methods.exported["sample"] = _sampler(model, settings)
        except TooManyEvaluationsError:
            methods.left_out["sample"] = (
                f"a sample of this {model.kind} needs more than {FEW} evaluations of its network; a vae, a gan and a "
                "mean flow need one or two"
            )
    if model.can("sample") and methods.exported and model.conditions.text.vocabulary:
        methods.left_out["text"] = "prompts are not an input, so the images are those without a prompt"
    if model.can("encode"):
        for method in _codec_methods(model):
            methods.exported[method.name] = method
    if not methods.exported:
        reason = methods.left_out.get("sample", f"a {model.kind} neither samples nor encodes images")
        raise ValueError(f"nothing to export as ONNX: {reason}")
    return methods


def _takes_condition(model: Any) -> bool:
    """Return whether samples can be conditioned on attributes or a label. Text is left out."""
    return bool(model.conditions.attributes or model.conditions.classes)


def _latent_methods(model: Any, options: Any) -> Iterator[Exported]:
    noise = RecordedNoise.for_images(0, range(ROWS))
    latents = Value("latents", "one vector per image", model.draw_latents(noise, options))
    same = len(noise.draws) == 1 and noise.draws[0][0] == "normal" and torch.equal(noise.draws[0][1], latents.example)
    if same:
        latents = Value("latents", "standard normal numbers, one vector per image", latents.example)
    else:
        draw = Method(model, lambda model, *draws: model.draw_latents(GivenNoise(draws), options))
        yield Exported("draw_latents", draw, _drawn(noise), latents)
    make = Method(model, lambda model, latents: model.from_latents(latents))
    yield Exported("from_latents", make, (latents,), _images(make(latents.example)))


def _sampler(model: Any, options: Any) -> Exported:
    noise, condition = RecordedNoise.for_images(0, range(ROWS)), model.conditions
    known: list[Value] = []
    if condition.attributes:
        unknown = torch.zeros(ROWS, len(condition.attributes))
        known.append(Value("attributes", "-1 no, 0 unknown, 1 yes", unknown, condition.attributes))
    if condition.classes:
        about = "class, from 0; -1 unknown"
        known.append(Value("labels", about, torch.full((ROWS,), -1), condition.class_names, condition.classes))
    names = [value.name for value in known]

    def call(model: Any, *inputs: Tensor) -> Tensor:
        draws, given = inputs[: len(inputs) - len(names)], inputs[len(inputs) - len(names) :]
        row = dict(zip(names, given, strict=True))
        return model.sample(GivenNoise(draws), Condition(row.get("attributes"), row.get("labels")), options)

    rows = {value.name: value.example for value in known}
    given = Condition(rows.get("attributes"), rows.get("labels"))
    with few_evaluations(model):
        images = model.sample(noise, given, options)
    return Exported("sample", Method(model, call), (*_drawn(noise), *known), _images(images))


def _codec_methods(model: Any) -> Iterator[Exported]:
    side = model.config.size
    images = _images(torch.rand(ROWS, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    encode = Method(model, lambda model, images: model.encode(images))
    about = f"codes from 0 to {model.codebook_size - 1}" if model.can("quantise") else "latents, of about unit variance"
    latents = Value("latents", about, encode(images.example))
    yield Exported("encode", encode, (images,), latents)
    decode = Method(model, lambda model, latents: model.decode(latents))
    yield Exported("decode", decode, (latents,), _images(decode(latents.example)))


def _images(example: Tensor) -> Value:
    return Value("images", "RGB, from -1 (black) to 1 (white)", example)


def _drawn(noise: RecordedNoise) -> tuple[Value, ...]:
    """Return the draws of a method as its inputs: normal, uniform, normal_2, ..."""
    about = {"normal": "standard normal numbers, times the temperature", "uniform": "uniform numbers in [0, 1)"}
    seen: Counter[str] = Counter()
    values = []
    for kind, draw in noise.draws:
        seen[kind] += 1
        values.append(Value(kind if seen[kind] == 1 else f"{kind}_{seen[kind]}", about[kind], draw))
    return tuple(values)


class TooManyEvaluationsError(Exception):
    """A network was evaluated more often than `few_evaluations` allows."""


@contextmanager
def few_evaluations(model: nn.Module, most: int = FEW) -> Iterator[None]:
    """Context in which each layer with weights may be called at most `most` times.

    Raises:
        TooManyEvaluationsError: at the next call. Sampling stops there.
    """
    calls: Counter[nn.Module] = Counter()

    def count(layer: nn.Module, inputs: Any) -> None:
        calls[layer] += 1
        if calls[layer] > most:
            raise TooManyEvaluationsError

    layers = [layer for layer in model.modules() if next(layer.parameters(recurse=False), None) is not None]
    handles = [layer.register_forward_pre_hook(count) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
