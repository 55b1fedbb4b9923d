"""Building a model and loading its weights: sizes are checked first, and every number."""

from __future__ import annotations

import typing
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode

from genmodels.reading import check_regular, in_one_line
from genmodels.saving import from_dict

M = TypeVar("M", bound=nn.Module)

MOST_TENSORS = 10_000
"""Largest number of weight tensors of a model that is built."""
_SINGLE = (int, float, bool, str, int | None, float | None, bool | None, str | None)
"""Types of settings that are single values."""
PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)
"""Types in which the weights of a model can be saved."""


def build(make: Callable[[], M], where: str, like: Mapping[str, Tensor] | None = None) -> M:
    """Build a model whose config comes from a file, after checking how large it becomes.

    It is built on the meta device first, which needs no memory, and no further than it may become:
    a config of a few bytes can describe endless work.

    Args:
        make: builds the model.
        where: the file of the config, for messages.
        like: tensors of the file of its weights, which the model may not exceed. By default, it may
            have as many as fit into memory.

    Raises:
        ValueError: if the config describes no model, or too large a one.
    """
    _shape(make, where, like)
    with _described(where):
        return make()


def checked_settings(network: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a diffusers network with those that are single values checked.

    diffusers checks few types; wrong ones fail when the network is used.

    Raises:
        ValueError: if one has another type than the network declares.
    """
    checked = dict(settings)
    for name, kind in typing.get_type_hints(network.__init__).items():  # type: ignore[misc]
        if name in settings and kind in _SINGLE and name != "sample_size":  # which may be one number or two
            checked[name] = from_dict(kind, settings[name], name)
    return checked


def load_model(make: Callable[[], M], where: str, path: Path, part: type[nn.Module], precision: str | None = None) -> M:
    """Build a model and load its weights.

    Each part gets the precision in which all of its floating-point weights are saved. No other type
    is converted.

    Args:
        make: builds the model.
        where: the file of its config, for messages.
        path: the safetensors file of its weights.
        part: class of the modules that can each have a precision of their own, such as a codec.
        precision: "float32" to convert all floating-point weights to it, see `saving.halve`.

    Raises:
        FileNotFoundError: if `path` does not exist.
        ValueError: see `build` and `read_tensors`; or if the weights are those of another config.
    """
    shapes = read_shapes(path)
    check_same(_shape(make, where, shapes).state_dict(), shapes, path, PRECISIONS)
    with _described(where):
        model = make()
    tensors = read_tensors(path, masks(model))
    if precision is None:
        names = [name for name, module in model.named_modules() if isinstance(module, part)]
        for name, kind in _precisions(tensors, names, path).items():
            model.get_submodule(name).to(kind)
    model.load_state_dict(tensors)
    return model


def _shape(make: Callable[[], M], where: str, like: Mapping[str, Tensor] | None) -> M:
    """Build a model on the meta device, within the limits of `build`."""
    if like is None:
        tensors, numbers = MOST_TENSORS, psutil.virtual_memory().total // 4
        why = "which is too large for this computer"
    else:  # with room for buffers that are not saved
        held = sum(t.numel() for t in like.values())
        tensors, numbers = 2 * len(like) + 64, 2 * held + 2**24
        why = f"but its weights are {len(like):,} tensors of {held:,} numbers: one of the files is damaged or mixed up"
    with warnings.catch_warnings(), _described(where), torch.device("meta"), _Shapes(), _at_most(tensors, numbers, why):
        warnings.simplefilter("ignore")  # about empty layers, several lines each
        return make()


class _Shapes(TorchFunctionMode):
    """Context in which no random numbers are drawn, for tensors of which only the shape is used.

    Drawing them on the meta device imports torch._dynamo, which takes seconds.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_"):
            return args[0] if args else kwargs["tensor"]
        if func in (torch.rand, torch.randn):
            func = torch.empty
        return func(*args, **kwargs)


def _precisions(tensors: Mapping[str, Tensor], parts: Iterable[str], path: Path) -> dict[str, torch.dtype]:
    """Return the floating-point type of each part, the whole before its parts."""
    found: dict[str, tuple[str, torch.dtype]] = {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            part = max((part for part in parts if not part or name.startswith(f"{part}.")), key=len)
            first, kind = found.setdefault(part, (name, tensor.dtype))
            if tensor.dtype != kind:
                raise _mixed_up(path, f"{name} is {_short(tensor.dtype)} and {first} is {_short(kind)}")
    return {part: found[part][1] for part in sorted(found, key=len)}


@contextmanager
def _described(where: str) -> Iterator[None]:
    """Context in which every error of building a model becomes a ValueError that names `where`."""
    try:
        yield
    except ValueError as error:
        text = in_one_line(error)
        raise ValueError(text if where in text else f"{where}: {text}") from None
    except Exception as error:  # a constructor can fail in many ways, which mean the same to the caller
        reason = in_one_line(str(error).partition("\nException raised from")[0], 120)  # without frames of C++
        raise ValueError(f"{where}: no model can be built from these settings ({reason})") from error


@contextmanager
def _at_most(tensors: int, numbers: int, why: str) -> Iterator[None]:
    """Context that stops the building of modules with more weights than given, or without end.

    Args:
        tensors, numbers: largest number of weight tensors, and of numbers in all of them.
        why: end of the message, which says why this is too much.
    """
    counts = {"tensors": 0, "numbers": 0, "modules": 0}

    def count_tensor(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        counts["tensors"] += 1
        counts["numbers"] += 0 if tensor is None else tensor.numel()
        if counts["tensors"] > tensors or counts["numbers"] > numbers:
            raise ValueError(f"it describes a model of more than {tensors:,} tensors or {numbers:,} numbers, {why}")

    def count_module(module: nn.Module, name: str, child: Any) -> None:
        counts["modules"] += 1
        if counts["modules"] > 8 * tensors:
            raise ValueError(f"it describes a model of more than {8 * tensors:,} modules, {why}")

    handles = (
        hooks.register_module_parameter_registration_hook(count_tensor),
        hooks.register_module_buffer_registration_hook(count_tensor),
        hooks.register_module_module_registration_hook(count_module),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def read_shapes(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file on the meta device: their shapes and types.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is damaged.
    """
    with _explained(path), safe_open(path, "pt") as file:
        shapes = {}
        for name in file.keys():  # noqa: SIM118  # not a dict
            part = file.get_slice(name)
            shape = part.get_shape()
            # The type of an empty slice is that of the tensor.
            empty = part[:0] if shape else file.get_tensor(name)
            shapes[name] = torch.empty(shape, dtype=empty.dtype, device="meta")
        return shapes


def read_all_shapes(folder: Path, kind: str) -> dict[str, Tensor]:
    """Return the tensors of all safetensors files in the folder of a diffusers network, as
    `read_shapes` does.

    Args:
        folder: the folder.
        kind: name of the class of the network, for messages.

    Raises:
        ValueError: if there are none, or one is damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"{folder} does not hold the weights of this {kind} as safetensors: save it again with "
            "save_pretrained(..., safe_serialization=True)"
        )
    return {name: tensor for file in files for name, tensor in read_shapes(file).items()}


def masks(model: nn.Module) -> set[str]:
    """Return the names of the buffers of a new model that hold infinity, such as a mask."""
    buffers = model.named_buffers(remove_duplicate=False)
    return {name for name, buffer in buffers if buffer.is_floating_point() and buffer.isinf().any()}


def read_tensors(path: Path, infinite: Collection[str] = ()) -> dict[str, Tensor]:
    """Read a safetensors file.

    Args:
        path: the file.
        infinite: see `check_finite`.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is damaged, or see `check_finite`.
    """
    with _explained(path):
        tensors = load_file(path)
    check_finite(tensors, path, infinite)
    return tensors


def check_finite(tensors: Mapping[str, Tensor], where: Path, infinite: Collection[str] = ()) -> None:
    """Check that every number is finite.

    Args:
        tensors: tensors by name.
        where: the file, for messages.
        infinite: names of tensors that may hold infinity but not NaN, see `masks`.

    Raises:
        ValueError: if one is not. The message names the tensor.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        bad = tensor.isnan() if name in infinite else ~tensor.isfinite()
        if bad.any():
            raise ValueError(
                f"{where}: {int(bad.sum()):,} of {tensor.numel():,} numbers of {name} are NaN or infinite: the weights "
                "are damaged, or training diverged; use an earlier model"
            )


def check_same(
    expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path, precisions: Iterable[torch.dtype] = ()
) -> None:
    """Check that tensors have the names, shapes and types of those of a model.

    Args:
        expected: state dict of the model.
        tensors: tensors of the file, or their shapes.
        path: the file, for messages.
        precisions: types that a floating-point tensor may also have.

    Raises:
        ValueError: if they differ.
    """
    for name in {**expected, **tensors}:
        if name not in tensors:
            raise _mixed_up(path, f"it lacks {name}")
        if name not in expected:
            raise _mixed_up(path, f"the model has no {name}")
        ours, theirs = expected[name], tensors[name]
        if ours.shape != theirs.shape:
            raise _mixed_up(path, f"{name} has shape {list(theirs.shape)}, the model's has {list(ours.shape)}")
        allowed = (ours.dtype, *(precisions if ours.is_floating_point() else ()))
        if theirs.dtype not in allowed:
            raise _mixed_up(path, f"{name} is {_short(theirs.dtype)}, the model's is {_short(ours.dtype)}")


def copy_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy the weights of the stage before.

    Raises:
        ValueError: if names or shapes differ; names the first one.
    """
    for name, value in model.state_dict().items():
        if name not in weights or weights[name].shape != value.shape:
            raise ValueError(f"{name} differs in shape from that of the stage before: keep size and architecture")
    model.load_state_dict(weights)


def _mixed_up(path: Path, reason: str) -> ValueError:
    return ValueError(f"{path}: not the weights of this config ({reason}); the file is damaged or mixed up")


def _short(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        check_regular(path)
        yield
    except SafetensorError as error:
        raise _mixed_up(path, in_one_line(error)) from None
