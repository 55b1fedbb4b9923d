"""genmodels: every family of generative model behind one interface.

The names in `__all__` are imported when they are first used, so `import genmodels` does not import
torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genmodels.abilities import ABILITIES
    from genmodels.ae import AE, AEConfig
    from genmodels.autoregressive import Autoregressive, AutoregressiveConfig
    from genmodels.base import Generator, Model
    from genmodels.clip import CLIP, CLIPConfig
    from genmodels.conditions import Condition, ConditionConfig, Text
    from genmodels.data import Packed, open_data, pack
    from genmodels.diffusion.unet import UNet, UNetConfig
    from genmodels.dit import DiT, DiTConfig
    from genmodels.evaluation.evaluate import evaluate
    from genmodels.gan import GAN, GANConfig
    from genmodels.kl import KL, KLConfig
    from genmodels.latent import Latent
    from genmodels.llava import LLaVA, LLaVAConfig
    from genmodels.lm import LM, LMConfig
    from genmodels.multimodal import Multimodal, MultimodalConfig
    from genmodels.tiny import Tiny, TinyConfig
    from genmodels.training.fit import fit
    from genmodels.training.optim import OptimConfig
    from genmodels.training.recipe import Recipe
    from genmodels.types import Batch, Noise
    from genmodels.vae import VAE, VAEConfig
    from genmodels.vqvae import VQVAE, VQVAEConfig

__version__ = "0.1.0"

ENTRY_POINTS = "genmodels.families"
"""Entry-point group under which other packages register families."""

FAMILIES = {
    "ae": "genmodels.ae:AE",
    "vae": "genmodels.vae:VAE",
    "vqvae": "genmodels.vqvae:VQVAE",
    "kl": "genmodels.kl:KL",
    "tiny": "genmodels.tiny:Tiny",
    "autoregressive": "genmodels.autoregressive:Autoregressive",
    "gan": "genmodels.gan:GAN",
    "unet": "genmodels.diffusion.unet:UNet",
    "dit": "genmodels.dit:DiT",
    "clip": "genmodels.clip:CLIP",
    "lm": "genmodels.lm:LM",
    "llava": "genmodels.llava:LLaVA",
    "multimodal": "genmodels.multimodal:Multimodal",
    "latent": "genmodels.latent:Latent",
}
"""Families of this package: name in commands and config.json, and import path "module:Class"."""

EXTRACTORS = {"extractor": "genmodels.evaluation.learned:LearnedExtractor"}
"""Feature extractors of this package, in the same form."""

EXPORTS = {
    "ABILITIES": "genmodels.abilities",
    "AE": "genmodels.ae",
    "AEConfig": "genmodels.ae",
    "Autoregressive": "genmodels.autoregressive",
    "AutoregressiveConfig": "genmodels.autoregressive",
    "Batch": "genmodels.types",
    "CLIP": "genmodels.clip",
    "CLIPConfig": "genmodels.clip",
    "Condition": "genmodels.conditions",
    "ConditionConfig": "genmodels.conditions",
    "DiT": "genmodels.dit",
    "DiTConfig": "genmodels.dit",
    "GAN": "genmodels.gan",
    "GANConfig": "genmodels.gan",
    "Generator": "genmodels.base",
    "KL": "genmodels.kl",
    "KLConfig": "genmodels.kl",
    "LLaVA": "genmodels.llava",
    "LLaVAConfig": "genmodels.llava",
    "LM": "genmodels.lm",
    "LMConfig": "genmodels.lm",
    "Latent": "genmodels.latent",
    "Model": "genmodels.base",
    "Multimodal": "genmodels.multimodal",
    "MultimodalConfig": "genmodels.multimodal",
    "Noise": "genmodels.types",
    "OptimConfig": "genmodels.training.optim",
    "Packed": "genmodels.data",
    "Recipe": "genmodels.training.recipe",
    "Text": "genmodels.conditions",
    "Tiny": "genmodels.tiny",
    "TinyConfig": "genmodels.tiny",
    "UNet": "genmodels.diffusion.unet",
    "UNetConfig": "genmodels.diffusion.unet",
    "VAE": "genmodels.vae",
    "VAEConfig": "genmodels.vae",
    "VQVAE": "genmodels.vqvae",
    "VQVAEConfig": "genmodels.vqvae",
    "evaluate": "genmodels.evaluation.evaluate",
    "fit": "genmodels.training.fit",
    "open_data": "genmodels.data",
    "pack": "genmodels.data",
}
"""Names that can be imported from `genmodels` directly, and the modules that define them."""

__all__ = [
    "ABILITIES",
    "AE",
    "CLIP",
    "FAMILIES",
    "GAN",
    "KL",
    "LM",
    "VAE",
    "VQVAE",
    "AEConfig",
    "Autoregressive",
    "AutoregressiveConfig",
    "Batch",
    "CLIPConfig",
    "Condition",
    "ConditionConfig",
    "DiT",
    "DiTConfig",
    "GANConfig",
    "Generator",
    "KLConfig",
    "LLaVA",
    "LLaVAConfig",
    "LMConfig",
    "Latent",
    "Model",
    "Multimodal",
    "MultimodalConfig",
    "Noise",
    "OptimConfig",
    "Packed",
    "Recipe",
    "Text",
    "Tiny",
    "TinyConfig",
    "UNet",
    "UNetConfig",
    "VAEConfig",
    "VQVAEConfig",
    "evaluate",
    "families",
    "family",
    "fit",
    "load",
    "open_data",
    "pack",
]


def families() -> dict[str, str]:
    """Return the import path "module:Class" of every family, by name.

    Families of other packages are registered under the entry-point group `genmodels.families`. They
    cannot replace those of this package.
    """
    others = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
    own = FAMILIES | EXTRACTORS
    return own | {name: path for name, path in others.items() if name not in own}


def family(name: str) -> type[Model]:
    """Import the class of a family.

    Raises:
        ValueError: if there is no such family, or the package that registers it cannot be imported.
    """
    path = FAMILIES.get(name) or families().get(name)
    if path is None:
        raise ValueError(f"unknown family {name[:40]!r}; known: {', '.join(families())}")
    module, _, attribute = path.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        if name in FAMILIES | EXTRACTORS:
            raise
        raise ValueError(f"family {name!r} is registered as {path}, which cannot be imported: {error}") from None


def load(path_or_hub_id: str | Path, *, safety_checker: bool = True, **hub: Any) -> Any:
    """Load a saved model of any family.

    Args:
        path_or_hub_id: a run or model folder (runs/vae); the id of a repository on the Hugging Face
            Hub (user/name); or the folder of a supported diffusers pipeline (DDPMPipeline,
            DDIMPipeline, LDMPipeline, DiTPipeline, StableDiffusionPipeline) or of transformers'
            CLIPModel.
        safety_checker: False leaves out the safety checker, if the model has one. Otherwise the
            images that it flags are black.
        **hub: arguments of `from_pretrained`: revision, token, cache_dir, force_download,
            local_files_only.

    Returns:
        The model, in eval mode.

    Raises:
        ValueError: if there is no complete model at that path or id.
    """
    from genmodels.hub import folder_of
    from genmodels.saving import is_foreign, read_header

    folder = folder_of(path_or_hub_id, **hub)
    if is_foreign(folder):
        from genmodels.exchange.importing import import_folder

        return import_folder(folder, safety_checker)
    kind = family(read_header(folder / "config.json")["family"])
    return kind.from_pretrained(folder, safety_checker=safety_checker)


def __getattr__(name: str) -> Any:
    """Import one of `EXPORTS` when it is first used."""
    if name in EXPORTS:
        return getattr(import_module(EXPORTS[name]), name)
    raise AttributeError(f"module 'genmodels' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *EXPORTS})
