"""ONNX files of the methods of a model that need few evaluations, with model.json about them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genmodels import __version__
from genmodels.exchange.methods import Exported, Methods, methods_of
from genmodels.modes import full_precision
from genmodels.reading import in_one_line
from genmodels.writing import is_free, replacing_folder, write_json, write_parts

OPSET = 18
TOLERANCE = 1e-4
"""Largest difference of the outputs of onnxruntime from those of torch."""
DESCRIPTION = "model.json"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""Packages of the extra "onnx"."""
SMALL = 64
"""Weights with fewer values are left in float32."""


class NotConvertedError(ValueError):
    """A method cannot be traced, or has an operation without a counterpart in ONNX."""


def export_to_onnx(model: Any, out: Path, options: Mapping[str, Any] | None = None) -> str:
    """Write the methods of `model` that need few evaluations into the new or empty folder `out`.

    Each becomes NAME.onnx, and model.json describes their inputs and outputs (see `describe`). The
    number of images is free. Every file is checked: onnxruntime gives the same as torch.

    Args:
        model: the model. It is not changed.
        out: the folder, which is written as a whole.
        options: sampling options: fields of the model's `Options`.

    Returns:
        One line on what the folder contains.

    Raises:
        ValueError: if nothing of the model can be exported, or a package is missing. Nothing has
            been written then.
    """
    check_packages()
    if not is_free(out):
        raise ValueError(f"{out} is not an empty folder: choose another")
    methods = methods_of(model, options)
    with replacing_folder(out) as draft:
        methods = write_methods(methods, draft)
        write_json(draft / DESCRIPTION, describe(model, methods, options), indent=2)
    left = "".join(f"; not {name}: {reason}" for name, reason in methods.left_out.items())
    return f"{' and '.join(f'{name}.onnx' for name in methods.exported)} with {DESCRIPTION}, for onnxruntime{left}"


def check_packages() -> None:
    """Raise ValueError if a package of the extra "onnx" is not installed."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ValueError(f"this needs {missing[0]}: pip install 'genmodels[onnx]'")


def describe(model: Any, methods: Methods, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the contents of model.json: the model, and the inputs and output of every file."""
    files = {
        f"{name}.onnx": {
            "inputs": [value.described() for value in method.inputs],
            "outputs": [method.output.described()],
        }
        for name, method in methods.exported.items()
    }
    return {
        "genmodels": __version__,
        "kind": model.kind,
        "size": model.config.size,
        "options": {name: str(value) for name, value in (options or {}).items()},
        "files": files,
        "left_out": methods.left_out,
    }


def write_methods(methods: Methods, folder: Path) -> Methods:
    """Write NAME.onnx of every method into an existing folder, and compare each with torch.

    Returns:
        The methods that were written; those that cannot be converted are among `left_out`.

    Raises:
        ValueError: if none can be converted, or the outputs of one differ.
    """
    written = Methods(left_out=dict(methods.left_out))
    for name, method in methods.exported.items():
        path = folder / f"{name}.onnx"
        try:
            write_parts(path, [to_onnx(method)])
        except NotConvertedError as error:
            written.left_out[name] = str(error)
            continue
        compare(method, path)
        written.exported[name] = method
    if not written.exported:
        raise ValueError(f"nothing to export as ONNX: {'; '.join(written.left_out[name] for name in methods.exported)}")
    return written


@torch.no_grad()
def export_program(method: Exported) -> torch.export.ExportedProgram:
    """Trace a method with torch.export. The number of images stays free.

    Raises:
        NotConvertedError: if it cannot be traced.
    """
    shapes = ({0: torch.export.Dim("n")},) * len(method.inputs)
    with _quiet():
        try:
            return torch.export.export(method.module, method.examples, dynamic_shapes=(shapes,))
        except Exception as error:  # of many types, in torch's own words
            raise NotConvertedError(f"torch.export cannot trace {method.name} ({in_one_line(error, 200)})") from None


def to_onnx(method: Exported) -> bytes:
    """Convert a method to the content of an ONNX file.

    Weights whose values are all float16 numbers, as those of a model that was saved in float16, are
    stored as such.

    Raises:
        NotConvertedError: if it cannot be converted.
    """
    program = export_program(method)
    with _quiet():
        try:
            made = torch.onnx.export(
                program,
                input_names=[value.name for value in method.inputs],
                output_names=[method.output.name],
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:
            reason = in_one_line(error.__cause__ or error, 200)
            raise NotConvertedError(f"{method.name} cannot be converted to ONNX ({reason})") from None
    assert made is not None
    proto = made.model_proto
    _store_as_half(proto.graph)
    return bytes(proto.SerializeToString())


def _store_as_half(graph: Any) -> None:
    """Store weights that float16 represents exactly as float16, followed by a cast to float32."""
    import onnx

    for weight in list(graph.initializer):
        values = onnx.numpy_helper.to_array(weight)
        if values.dtype != np.float32 or values.size < SMALL:
            continue
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if np.array_equal(half.astype(np.float32), values):
            name = weight.name
            weight.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}_half"))
            cast = onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT)
            graph.node.insert(0, cast)


@torch.no_grad()
def compare(method: Exported, path: Path) -> None:
    """Compare an ONNX file with the method of torch, for three times the rows of the example.

    Raises:
        ValueError: if floating-point outputs differ by more than `TOLERANCE`, or codes by more than
            one in a hundred, which a tie between two codes may explain.
    """
    inputs = [torch.cat([value] * 3) for value in method.examples]
    with full_precision("cpu"):
        expected = method.module(*inputs)
    output = torch.from_numpy(run(path, dict(zip((value.name for value in method.inputs), inputs, strict=True))))
    if expected.is_floating_point():
        difference = float((output - expected).abs().max())
        if not difference <= TOLERANCE:
            raise ValueError(f"{path.name} differs from torch by {difference:.2g}, more than {TOLERANCE:g}")
    elif (output != expected).float().mean() > 0.01:
        raise ValueError(f"{path.name} differs from torch in more than one code of a hundred")


def run(path: Path, inputs: Mapping[str, Tensor]) -> np.ndarray:
    """Run an ONNX file of one output with onnxruntime, on one thread."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    output: np.ndarray = session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]
    return output


@contextmanager
def _quiet() -> Iterator[None]:
    """Context without the messages of torch's exporters, which are about their own code."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.fx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
