"""Commands that exchange models with other programs: export and import.

Signatures and docstrings are what `--help` prints. Slow imports are inside the functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from genmodels.cli.arguments import ShownFlags, check_empty, chosen_options, load
from genmodels.usage import UsageError

if TYPE_CHECKING:
    from genmodels.exchange.web import Directions

Target = Literal["diffusers", "stable-diffusion", "transformers", "onnx", "web", "space"]
FLAGS = {
    "options": ("onnx", "web"),
    "attributes": ("web",),
    "data": ("web",),
    "root": ("web",),
    "runtime": ("web",),
    "wheel": ("space",),
}
"""Targets that each further flag belongs to."""
REACH = 1.5
"""Largest value of the slider of an attribute, in distances between the means with and without it."""


def export(
    run: Positional[str],
    out: Positional[Path],
    to: Target = "diffusers",
    attributes: tuple[str, ...] = (),
    data: str | None = None,
    root: Path | None = None,
    runtime: Path | None = None,
    wheel: Path | None = None,
    safety_checker: bool = True,
    options: tuple[str, ...] = (),
) -> None:
    """Write a model as a folder for another library, a web page, or a Space of the Hub.

    Args:
        run: run or model folder, toyfaces/NAME, or an id on the Hub.
        out: new or empty folder.
        to: diffusers: for a unet, dit, kl or tiny; a standard pipeline if one fits, otherwise a custom pipeline.
            stable-diffusion: a StableDiffusionPipeline, or an error that says why not. transformers: for a clip,
            lm or llava. onnx: what needs few evaluations of the network, for onnxruntime. web: a static page that
            draws images in the browser. space: a Space of the Hugging Face Hub with the page of `genmodels app`.
        attributes: web: attributes that get a slider, such as Smiling; none: the principal directions.
        data: web: labelled images for --attributes. By default, what the run was trained on.
        root: web: where the files of the data set are. By default, that of the run.
        runtime: web: folder or archive of onnxruntime-web. By default, npm downloads it into the cache.
        wheel: space: wheel of genmodels that the Space installs. By default, the package of this version.
        safety_checker: export the model with its safety checker, if it has one.
        options: onnx, web: sampling options of the family, as NAME=VALUE or --NAME VALUE.
    """
    given = {"options": options, "attributes": attributes, "data": data, "root": root}
    given |= {"runtime": runtime, "wheel": wheel}
    for name, targets in FLAGS.items():
        if given[name] and to not in targets:
            raise UsageError(f"--{name} has no effect with --to {to}: it belongs to --to {' or '.join(targets)}")
    if (data or root) and not attributes:
        raise UsageError("--data and --root have no effect without --attributes")
    model = load(run, ShownFlags(safety_checker=safety_checker))
    print(f"{out} is {_write(model, out, to, chosen_options(model, options), given, run)}")


def _write(model: Any, out: Path, to: Target, options: Mapping[str, Any], given: Mapping[str, Any], run: str) -> str:
    """Write `model` into the folder `out` and return one line on how to use it."""
    if to == "onnx":
        from genmodels.exchange.onnx import export_to_onnx

        return export_to_onnx(model, out, options)
    if to == "web":
        from genmodels.exchange.web import export_to_web

        check_empty(out)
        directions = _attribute_directions(model, run, given) if given["attributes"] else None
        return export_to_web(model, out, options, directions, given["runtime"])
    if to == "space":
        from genmodels.exchange.space import export_to_space

        return export_to_space(model, out, given["wheel"])
    from genmodels.exchange.export import export_to_diffusers, export_to_stable_diffusion
    from genmodels.exchange.transformers import export_to_transformers

    write = {
        "diffusers": export_to_diffusers,
        "stable-diffusion": export_to_stable_diffusion,
        "transformers": export_to_transformers,
    }[to]
    return write(model, out)


def _attribute_directions(model: Any, run: str, given: Mapping[str, Any]) -> Directions:
    """Compute the directions of attributes from labelled images."""
    import numpy as np

    from genmodels.cli.directions import labelled_images
    from genmodels.directions import attribute_directions
    from genmodels.exchange.web import Directions
    from genmodels.sampling import require

    require(model, "latent_directions")
    names = given["attributes"]
    images = labelled_images(run, model.config.size, names, given["data"], given["root"])
    vectors = attribute_directions(model, np.asarray(images.images), images.attributes, names)
    return Directions(tuple(name.replace("_", " ") for name in names), vectors, REACH)


def import_(folder: Positional[Path], out: Positional[Path], safety_checker: bool = True) -> None:
    """Convert a pipeline of diffusers, or a model of transformers, to a genmodels model.

    Every command also reads the folder itself.

    Args:
        folder: folder of a DDPMPipeline, DDIMPipeline, LDMPipeline, DiTPipeline, StableDiffusionPipeline,
            CLIPModel, LlamaForCausalLM or LlavaForConditionalGeneration.
        out: new or empty folder for the model.
        safety_checker: keep the safety checker of a StableDiffusionPipeline, if it has one. The model then
            shows black images in place of those that it flags.
    """
    from genmodels.exchange.importing import import_folder
    from genmodels.saving import is_foreign

    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    if not is_foreign(folder):
        raise ValueError(
            f"{folder} is neither a pipeline of diffusers, since it has no model_index.json, nor a CLIPModel, "
            "LlamaForCausalLM or LlavaForConditionalGeneration of transformers"
        )
    check_empty(out)
    model = import_folder(folder, safety_checker)
    model.save_pretrained(out)
    print(f"{model.kind} of {model.config.size} px in {out}: genmodels info {out}")
