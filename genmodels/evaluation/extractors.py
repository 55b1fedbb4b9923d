"""Feature extractors: the embedded one, and three that are common in the literature."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import pickle
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

import genmodels
from genmodels.evaluation.protocol import Protocol
from genmodels.hashing import weights_hash
from genmodels.shipped import locate

FID_WEIGHTS = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
"""Two names of one file, the conversion of the FID graph of 2015: by torch-fidelity and by
pytorch-fid."""
FID_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

DINOV2 = "facebook/dinov2-large"
CLIP = "openai/clip-vit-large-patch14-336"
DINOV2_SIZE = 224
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of each colour channel, in [0, 1]."""

Network = Callable[[Tensor], Tensor]
"""Maps uint8 (N, 3, H, W) to (N, D)."""


@dataclass(frozen=True)
class Extractor:
    """A network whose features are compared.

    Any function of a batch of images can be used: `Extractor("mine", function)`.

    Attributes:
        name: name in the metrics, such as "inception".
        network: maps uint8 (N, 3, H, W) on `device` to float (N, D).
        weights: 16 hex digits of the SHA-256 of its weights. If they are "unknown", features are
            not cached.
        resize: short description of how it resizes images.
        official: whether it is the FID graph with its published weights. Only its distances are
            called FID and KID.
        device: device of the network.
        version: version of the extractor, if it has several. Scores of different versions have the
            same name and are not compared.
        sentences: maps N sentences to float (N, D) in the same space, of unit length as the
            features are; None if it embeds only images.
    """

    name: str
    network: Network
    weights: str = "unknown"
    resize: str = "its own"
    official: bool = False
    device: torch.device | str = "cpu"
    version: int | None = None
    sentences: Callable[[Sequence[str]], Tensor] | None = None

    def measure(self, what: str) -> str:
        """Return the name of a metric of these features: "fd" -> "fd-faces", or "fid" for the
        official FID graph.

        Args:
            what: "fd" (Fréchet distance), "kd" (kernel distance), "rfd" (of reconstructions), one
                of a kind such as "fd-by-class", or another metric.
        """
        first, dash, rest = what.partition("-")
        published = {"fd": "fid", "kd": "kid", "rfd": "rfid"} if self.official else {}
        return f"{published[first]}{dash}{rest}" if first in published else f"{what}-{self.name}"

    def protocol(self, images: Protocol) -> Protocol:
        """Return the protocol of a metric of these features, given the protocol of the images."""
        return replace(images, extractor=self.name, version=self.version, weights=self.weights, resize=self.resize)


def load_extractor(spec: str, device: torch.device | str = "cpu") -> Extractor:
    """Load an extractor by name, in eval mode and float32, and frozen.

    - faces: the embedded FaceNet, trained on procedural faces. It needs no download.
    - inception: the graph of FID (arXiv 1706.08500) and KID (arXiv 1801.01401) from torch-fidelity:
      pool features, (N, 2048).
    - dinov2: DINOv2 ViT-L/14 at 224 px, as in FD-DINOv2 (arXiv 2306.04675): class token after the
      last norm, (N, 1024).
    - clip: CLIP ViT-L/14 at 336 px, as in CMMD (arXiv 2401.09603): projected image embedding of
      unit length, (N, 768).
    - own=RUN: the run folder of `genmodels train extractor`.

    Args:
        spec: one of these names, or NAME=PATH for other weights in the same layout: a .pth file for
            inception, a folder or Hub id in transformers' layout for dinov2 and clip. For clip, the
            folder may also be that of any model of ours that embeds images and text.
        device: device of the network.

    Raises:
        ValueError: if the name is unknown, a library is not installed, or weights are absent,
            damaged or of another network. The message is one line and says how to get them.
    """
    check_spec(spec)
    name, _, path = spec.partition("=")
    return LOADERS[name](path or None, torch.device(device))


def check_spec(spec: str) -> None:
    """Check that `spec` names an extractor, without loading it.

    Raises:
        ValueError: if it does not; the message lists the known names.
    """
    name, equals, path = spec.partition("=")
    if name not in LOADERS:
        known = ", ".join(other for other in LOADERS if other != "own")
        raise ValueError(f"unknown extractor {name!r}; known: {known}, each also as NAME=PATH, and own=RUN")
    if equals and not path:
        raise ValueError(f"{spec}: no path after the equals sign; write {name}=PATH")
    if name == "own" and not path:
        raise ValueError("own needs the run folder of `genmodels train extractor`: own=RUN")


def resize_bicubic(pixels: Tensor, size: int) -> Tensor:
    """Resize uint8 (N, 3, H, W) to float32 (N, 3, size, size) in [0, 1] as Pillow does, up to
    rounding.

    Pillow, and therefore the published pipelines, resizes one axis after the other and rounds to 8
    bits after each.
    """
    x = pixels.float()
    for shape in ((x.shape[2], size), (size, size)):
        if x.shape[2:] != shape:
            x = F.interpolate(x, shape, mode="bicubic", antialias=True).round().clamp(0, 255)  # (N, 3, *shape)
    return x / 255


def _faces(path: str | None, device: torch.device) -> Extractor:
    from genmodels.evaluation.facenet import load_facenet

    network, weights, resize = load_facenet(None if path is None else Path(path), device)
    # FD-faces is the distance of the embedded weights.
    name = "faces" if path is None else f"faces:{weights[:8]}"
    return Extractor(name, network, weights, resize, device=device)


def _own(path: str | None, device: torch.device) -> Extractor:
    from genmodels.evaluation.learned import load_learned

    assert path is not None  # check_spec refuses "own" alone
    network, weights, resize = load_learned(path, device)
    return Extractor(f"own:{weights[:8]}", network, weights, resize, device=device)


def _inception(path: str | None, device: torch.device) -> Extractor:
    _check_installed("torch_fidelity", "inception needs torch-fidelity")
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

    file = _find_fid_weights(URL_INCEPTION_V3) if path is None else Path(path)
    try:
        data = file.read_bytes()
        # torch-fidelity loads pickles: check first that the file contains only tensors.
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"inception: {file}: no such file") from None
    except (OSError, EOFError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"inception: {file} cannot be read as weights ({_in_brief(error)}): download {FID_WEIGHTS[0]} again"
        ) from None
    try:
        graph = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=io.BytesIO(data))
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(
            f"inception: {file} holds weights of another network ({_in_brief(error)}): expected {FID_WEIGHTS[0]}"
        ) from None
    graph = graph.to(device)

    def network(pixels: Tensor) -> Tensor:
        return graph(pixels)[0]  # (N, 2048)

    official = hashlib.sha256(data).hexdigest() == FID_SHA256
    resize = "bilinear as in TensorFlow 1, to 299 px"
    return Extractor("inception", network, weights_hash(graph.state_dict(), names=False), resize, official, device)


def _find_fid_weights(url: str) -> Path:
    """Return the published weights in torch.hub's folder. They are downloaded if they are not
    there."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name in FID_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    file = folder / FID_WEIGHTS[0]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), FID_SHA256, progress=sys.stderr.isatty())
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"inception needs {file.name} and the download failed ({_in_brief(error)}): put the file into {folder}, "
            "or give its path as inception=PATH"
        ) from None
    return file


def _dinov2(source: str | None, device: torch.device) -> Extractor:
    _check_installed("transformers", "dinov2 needs transformers")
    from transformers import Dinov2Model

    model = _load_transformer(Dinov2Model, "dinov2", source or DINOV2).to(device)

    def network(pixels: Tensor) -> Tensor:
        x = _normalise(resize_bicubic(pixels, DINOV2_SIZE), *IMAGENET)  # (N, 3, 224, 224)
        return model(pixel_values=x).last_hidden_state[:, 0]  # (N, D)

    resize = f"bicubic as in Pillow, to {DINOV2_SIZE} px"
    return Extractor("dinov2", network, weights_hash(model.state_dict(), names=False), resize, device=device)


def _clip(source: str | None, device: torch.device) -> Extractor:
    from genmodels.evaluation.embedder import embedder, is_saved_model

    if source is not None and is_saved_model(locate(source)):
        return embedder(genmodels.load(source).to(device), "clip")
    _check_installed("transformers", "clip needs transformers")
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    source = source or CLIP
    model = _load_transformer(CLIPVisionModelWithProjection, "clip", source).to(device)
    with _one_line("clip", source):
        colours = CLIPImageProcessor.from_pretrained(source)
    size = int(model.config.image_size)

    def network(pixels: Tensor) -> Tensor:
        x = _normalise(resize_bicubic(pixels, size), colours.image_mean, colours.image_std)  # (N, 3, size, size)
        return F.normalize(model(pixel_values=x).image_embeds, dim=1)  # (N, D)

    resize = f"bicubic as in Pillow, to {size} px"
    return Extractor("clip", network, weights_hash(model.state_dict(), names=False), resize, device=device)


def _load_transformer(kind: Any, name: str, source: str) -> Any:
    """Load a model of transformers' class `kind` in float32. Weights that do not fill it are
    refused."""
    with _one_line(name, source):
        model, report = kind.from_pretrained(
            source, dtype=torch.float32, weights_only=True, ignore_mismatched_sizes=True, output_loading_info=True
        )
    # transformers leaves tensors that are not in the file random, and only warns.
    wrong = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if wrong:
        raise ValueError(
            f"{name}: {source} holds weights of another network: {len(wrong)} tensors are missing or of another shape, "
            f"such as {wrong[0]}; expected those of {DINOV2 if name == 'dinov2' else CLIP}"
        )
    return model.requires_grad_(False).eval()


@contextmanager
def _one_line(name: str, source: str) -> Iterator[None]:
    """Context manager in which transformers prints only downloads, and its errors about `source`
    become one line."""
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if bars:
        enable_progress_bars()  # of the Hub: a download of a gigabyte should be visible
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError, pickle.UnpicklingError) as error:
        reason = _in_brief(error)
        if Path(source).exists():
            raise ValueError(
                f"{name}: {source} cannot be loaded ({reason}): expected a folder in transformers' layout, "
                "with config.json, model.safetensors and (for clip) preprocessor_config.json"
            ) from None
        if source.count("/") != 1 or source.startswith(("/", ".", "~")):  # no Hub id
            raise ValueError(f"{name}: {source}: no such folder") from None
        raise ValueError(
            f"{name}: no weights from {source} ({reason}): with internet run `hf download {source}`, "
            f"or give a folder in transformers' layout: {name}=PATH"
        ) from None
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _normalise(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalise (N, 3, H, W) in [0, 1] to zero mean and unit variance per channel."""
    return (x - x.new_tensor(mean)[:, None, None]) / x.new_tensor(std)[:, None, None]


def _check_installed(module: str, need: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"{need}: pip install 'genmodels[evaluation]'")


def _in_brief(error: BaseException) -> str:
    """Return the beginning of an error's message on one line."""
    return textwrap.shorten(str(error), 120, placeholder=" ...") or type(error).__name__


LOADERS = {"faces": _faces, "inception": _inception, "dinov2": _dinov2, "clip": _clip, "own": _own}
"""Function that loads each extractor, given a path (None for the published weights) and a
device."""
