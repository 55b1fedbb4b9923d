"""Safety checker: a network that flags generated images which should not be shown.

It is the one of Stable Diffusion (diffusers' StableDiffusionSafetyChecker): the CLIP embedding of an
image is compared with those of unwanted concepts. `checking` is the only place where it, and an
image filter of the user, are asked: everything that shows generated images uses it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from genmodels.hub import FURTHER
from genmodels.modes import evaluating, full_precision
from genmodels.pictures import to_uint8
from genmodels.reading import in_one_line, read_json
from genmodels.usage import say
from genmodels.weights import PRECISIONS, build, check_same, read_all_shapes, read_shapes, read_tensors
from genmodels.writing import write_json

FILES = FURTHER["safety_checker"]
"""Files of a safety checker in the folder of a saved model."""
CHECKER, PROCESSOR = Path("safety_checker", "config.json"), Path("feature_extractor", "preprocessor_config.json")
"""Its files in the folder of a pipeline of diffusers, with the weights beside the first."""
KIND = "StableDiffusionSafetyChecker"
LARGEST_SIDE = 1024
"""Largest side of the images that a folder's preprocessing makes, in pixels. Theirs have 224."""
HOW_TO_LEAVE_OUT = "--no-safety-checker, or safety_checker=False in Python"

C = TypeVar("C")


@contextmanager
def checking(model: Any) -> Iterator[Callable[[Tensor], Tensor]]:
    """Compute generated images in eval mode, and show them only if the model's filters agree.

    Yields a function that takes images (N, 3, H, W) in [-1, 1] and returns them with a black image in
    place of each that is flagged. At the end, one line says how many were.

    Example::

        >>> with checking(model) as checked:
        ...     images = checked(model.sample(noise, condition, options))

    Args:
        model: a `Generator`. Without a `safety_checker` and an `image_filter`, images stay as they are.
    """
    both = {"safety checker": model.safety_checker, "image filter": model.image_filter}
    filters = {name: part for name, part in both.items() if part is not None}
    counts = Counter[str]()

    def checked(images: Tensor) -> Tensor:
        flags = {name: part(images) for name, part in filters.items()}
        counts.update({"images": len(images)} | {name: int(flagged.sum()) for name, flagged in flags.items()})
        for flagged in flags.values():
            images = images.masked_fill(flagged[:, None, None, None], -1)
        return images

    with evaluating(model):
        yield checked
    for name in filters:
        if counts[name]:
            remedy = f", or leave it out ({HOW_TO_LEAVE_OUT})" if name == "safety checker" else ""
            say(
                f"the {name} flagged {counts[name]} of {counts['images']} images, which are black: try another "
                f"prompt or seed{remedy}"
            )


class SafetyChecker:
    """A StableDiffusionSafetyChecker of diffusers with its CLIPImageProcessor. Copies share it.

    Args:
        network: the network.
        processor: what prepares images for it.
    """

    def __init__(self, network: Any, processor: Any):
        self.network = network.requires_grad_(False).eval()
        self.processor = processor
        # It prints a warning, which `checking` replaces.
        logging.getLogger(type(network).__module__).setLevel(logging.ERROR)

    def __deepcopy__(self, memo: dict[int, Any]) -> SafetyChecker:
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return which images (N, 3, H, W) in [-1, 1] are flagged, bool (N,), as the pipeline of
        diffusers decides."""
        pictures = [Image.fromarray(image) for image in to_uint8(images)]
        pixels = self.processor(pictures, return_tensors="pt").pixel_values.to(images.device)
        with full_precision(images.device):
            # The network blackens its second argument itself: what it returns is not needed.
            _, flagged = self.network.to(images.device)(pixels.float(), torch.zeros(len(images), 1))
        return torch.tensor(flagged, device=images.device)

    # ---- files ----

    def save(self, folder: Path) -> None:
        """Write `FILES` into the folder of a saved model."""
        from safetensors.torch import save_file

        weights, settings = (folder / name for name in FILES)
        save_file({name: value.contiguous() for name, value in self.network.state_dict().items()}, weights)
        parts = {"network": self.network.config, "processor": self.processor}
        write_json(settings, {name: json.loads(part.to_json_string()) for name, part in parts.items()}, indent=2)
        weights.chmod(settings.stat().st_mode)  # see `saving.write_model`

    @classmethod
    def beside_weights(cls, folder: Path) -> SafetyChecker:
        """Read `FILES` from the folder of a saved model.

        Raises:
            ValueError: if one is missing or damaged.
        """
        for name in FILES:
            if not (folder / name).is_file():
                raise ValueError(f"{folder} has no {name}: copy it there, or leave it out ({HOW_TO_LEAVE_OUT})")
        weights, file = (folder / name for name in FILES)
        both = read_json(file)
        if not isinstance(both, dict) or not {"network", "processor"} <= both.keys():
            raise ValueError(f"{file} was not written by genmodels: it lacks network or processor")
        return cls._made(both["network"], both["processor"], read_shapes(weights), [weights], file)

    @classmethod
    def of_pipeline(cls, folder: Path) -> SafetyChecker | None:
        """Read that of a pipeline of diffusers from safetensors, or return None if it has none.

        Raises:
            ValueError: if a file is missing or damaged, or the checker is of another class.
        """
        listed = read_json(folder / "model_index.json").get(CHECKER.parts[0])
        kind = listed[1] if isinstance(listed, list) and len(listed) == 2 else None
        if kind is None and not (folder / CHECKER.parts[0]).is_dir():
            return None
        if kind not in (None, KIND):
            raise ValueError(
                f"{folder}: a safety checker {str(kind)[:40]} is not supported: leave it out ({HOW_TO_LEAVE_OUT})"
            )
        for file in (CHECKER, PROCESSOR):
            if not (folder / file).is_file():
                raise ValueError(
                    f"{folder} has a safety checker and no {file}: add it, or leave the checker out "
                    f"({HOW_TO_LEAVE_OUT})"
                )
        place = folder / CHECKER.parent
        shapes = read_all_shapes(place, KIND)
        files = sorted(place.glob("*.safetensors"))
        return cls._made(read_json(folder / CHECKER), read_json(folder / PROCESSOR), shapes, files, folder / CHECKER)

    @classmethod
    def _made(
        cls, settings: Any, preparation: Any, shapes: Mapping[str, Tensor], weights: list[Path], where: Path
    ) -> SafetyChecker:
        """Build one from the settings of both parts and the files of its weights."""
        transformers, kind = _libraries()
        try:
            config = transformers.CLIPConfig.from_dict(settings)
            config._attn_implementation = None  # a name of a file could be that of code on the Hub
            processor = transformers.CLIPImageProcessor.from_dict(preparation)
        except Exception as error:  # of many types, which mean the same to the caller
            raise ValueError(f"{where}: not the settings of a {KIND} ({in_one_line(error, 200)})") from None
        if largest_side(processor) > LARGEST_SIDE:
            raise ValueError(
                f"{where}: its preprocessing makes images of {largest_side(processor):,} pixels a side, more than "
                f"{LARGEST_SIDE:,}: leave it out ({HOW_TO_LEAVE_OUT})"
            )
        network = build(lambda: kind(config), str(where), shapes)
        like = network.state_dict()
        tensors = {}
        for file in weights:
            for name, value in read_tensors(file).items():
                # Versions of transformers differ in whether the name of the tower is repeated.
                names = (name, name.replace("vision_model.", "", 1), f"vision_model.{name}")
                tensors[next((each for each in names if each in like), name)] = value
        tensors = {name: value for name, value in tensors.items() if not name.endswith("position_ids")}
        check_same(like, tensors, where, PRECISIONS)
        network.load_state_dict(tensors)
        checker = cls(network, processor)
        try:
            checker(torch.zeros(1, 3, 64, 64))
        except Exception as error:  # of sizes that do not go together
            raise ValueError(f"{where}: the safety checker cannot be used ({in_one_line(error, 200)})") from None
        return checker


def largest_side(processor: Any) -> float:
    """Return the largest size among the settings of a CLIPImageProcessor, in pixels."""
    sizes = [value for name, value in json.loads(processor.to_json_string()).items() if name.endswith("size")]
    numbers = [number for size in sizes for number in (size.values() if isinstance(size, dict) else [size])]
    return max((number for number in numbers if isinstance(number, int | float)), default=0)


def without_checker(config: C) -> C:
    """Return the config of a model without its safety checker, if it has one."""
    if getattr(config, "safety_checker", False):
        return dataclasses.replace(config, safety_checker=False)  # type: ignore[type-var]
    return config


def _libraries() -> tuple[Any, Any]:
    """Import transformers, and the class of the checker.

    Raises:
        ValueError: if transformers is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise ValueError(
            "the safety checker needs transformers: pip install 'genmodels[evaluation]', or leave it out "
            f"({HOW_TO_LEAVE_OUT})"
        ) from None
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    return transformers, StableDiffusionSafetyChecker
