"""A static page that draws images of a model in the visitor's browser, by onnxruntime-web."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from genmodels.directions import principal_directions
from genmodels.exchange.methods import Exported, Methods, methods_of
from genmodels.exchange.onnx import DESCRIPTION, check_packages, describe, write_methods
from genmodels.exchange.runtime import VERSION, runtime_files
from genmodels.sampling import require
from genmodels.writing import is_free, replacing_folder, write_json, write_parts

PAGE = Path(__file__).parent / "page"
"""The page itself: index.html, page.js, page.css."""
PRINCIPAL = 4
"""Number of principal directions with a slider."""


@dataclass(frozen=True)
class Directions:
    """Directions in latent space, each of which becomes a slider.

    Attributes:
        names: what changes, one name per direction.
        vectors: (K, D), for a slider at 1.
        reach: largest value of the sliders.
    """

    names: tuple[str, ...]
    vectors: Tensor
    reach: float


def export_to_web(
    model: Any,
    out: Path,
    options: Mapping[str, Any] | None = None,
    directions: Directions | None = None,
    runtime: Path | None = None,
) -> str:
    """Write a page into the new or empty folder `out`, as a whole, for any static web server.

    Args:
        model: a model that samples with few evaluations of its network.
        out: the folder.
        options: sampling options: fields of the model's `Options`.
        directions: directions of attributes; None: principal directions of the model's own
            images, if it has latent directions.
        runtime: files of onnxruntime-web, as `runtime_files` takes them.

    Returns:
        One line on how to open the page.

    Raises:
        ValueError: if the model cannot be drawn in a browser, or a package or onnxruntime-web is
            missing. Nothing has been written then.
    """
    check_packages()
    if not is_free(out):
        raise ValueError(f"{out} is not an empty folder: choose another")
    require(model, "sample")
    methods = drawn_by(methods_of(model, options))
    files = runtime_files(runtime)
    if directions is None and model.can("latent_directions"):
        names = tuple(f"Direction {i + 1}" for i in range(PRINCIPAL))
        directions = Directions(names, principal_directions(model, PRINCIPAL, **options or {}), 3.0)
    with replacing_folder(out) as draft:
        written = write_methods(methods, draft)
        if missing := methods.exported.keys() - written.exported.keys():
            raise ValueError("; ".join(written.left_out[name] for name in sorted(missing)))
        about = describe(model, written, options) | {"directions": described(directions)}
        write_json(draft / DESCRIPTION, about)
        for file in PAGE.iterdir():
            shutil.copyfile(file, draft / file.name)
        (draft / "runtime").mkdir()
        for name, content in files.items():
            write_parts(draft / "runtime" / name, [content])
    size = sum(path.stat().st_size for path in out.glob("*.onnx")) / 1e6
    return (
        f"a page with {size:.1f} MB of model and onnxruntime-web {VERSION}: python -m http.server -d {out}, then open "
        "http://localhost:8000"
    )


def drawn_by(methods: Methods) -> Methods:
    """Return the methods that the page draws with: from vectors, or else from normal noise.

    Raises:
        ValueError: if a sample needs too many evaluations, or other random numbers.
    """
    exported = methods.exported
    if "from_latents" in exported:
        drawn: dict[str, Exported] = {
            name: exported[name] for name in ("draw_latents", "from_latents") if name in exported
        }
        return Methods(drawn, methods.left_out)
    if "sample" not in exported:
        raise ValueError(f"no page for this model: {methods.left_out['sample']}")
    draws = [value.name for value in exported["sample"].inputs if value.name not in ("attributes", "labels")]
    if draws != ["normal"]:
        raise ValueError(
            "no page for this model: the page interpolates between samples that are made from normal noise alone, and "
            f"those of this model are made from {' and '.join(draws)}"
        )
    return Methods({"sample": exported["sample"]}, methods.left_out)


def described(directions: Directions | None) -> list[dict[str, Any]]:
    """Return the entries of directions in model.json."""
    if directions is None:
        return []
    rows = directions.vectors.cpu().numpy()
    return [
        {"name": name, "reach": directions.reach, "vector": [float(f"{value:.6g}") for value in row]}
        for name, row in zip(directions.names, rows, strict=True)
    ]
