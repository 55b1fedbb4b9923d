"""genmodels: every family of generative model behind one interface, trained, sampled and scored the same way, on
faces."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genmodels.base import Model

__version__ = "0.1.0"

ENTRY_POINTS = "genmodels.families"
"""Entry-point group under which other packages register families."""

FAMILIES = {
    "ae": "genmodels.ae:AE",
    "vae": "genmodels.vae:VAE",
    "vqvae": "genmodels.vqvae:VQVAE",
    "autoregressive": "genmodels.autoregressive:Autoregressive",
    "gan": "genmodels.gan:GAN",
    "unet": "genmodels.diffusion.unet:UNet",
    "dit": "genmodels.dit:DiT",
    "latent": "genmodels.latent:Latent",
}
"""Every family, by the name that commands and config.json use: where its class is. Imported when first asked for."""


def families() -> dict[str, str]:
    """Return the place of the class of every family, by name: "module:Class".

    Families of other packages are registered under the entry-point group `genmodels.families`. They
    cannot replace those of this package.
    """
    others = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
    return others | FAMILIES


def family(name: str) -> type[Model]:
    """Import the class of a family.

    Raises:
        ValueError: if there is no such family, or the package that registers it cannot be imported.
    """
    place = FAMILIES.get(name) or families().get(name)
    if place is None:
        raise ValueError(f"unknown family {name!r}; known: {', '.join(families())}")
    module, _, attribute = place.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        if name in FAMILIES:
            raise
        raise ValueError(f"family {name!r} is registered as {place}, which cannot be imported: {error}") from None


def load(path_or_hub_id: str | Path, **hub: Any) -> Any:
    """A saved model of any family: a run or model folder, or the id of a repository on the Hub; or the folder of a
    pipeline of diffusers, where it has a counterpart here (DDPMPipeline, DDIMPipeline, LDMPipeline).

    Args:
        path_or_hub_id: the folder (runs/vae) or Hub id (user/name).
        **hub: passed to from_pretrained: revision, token, cache_dir, force_download, local_files_only.

    Raises:
        ValueError: when there is no complete model there; the message says what is wrong.
    """
    from huggingface_hub import hf_hub_download

    from genmodels.saving import read_header

    where = Path(path_or_hub_id)
    if (where / "model_index.json").is_file():
        from genmodels.exchange.importing import import_pipeline

        return import_pipeline(where)
    if where.is_dir():
        config = where / "config.json"
    elif where.exists() or len(where.parts) != 2 or where.is_absolute():
        raise ValueError(f"{where}: no such model folder (and not a Hub id of the form user/name)")
    else:
        try:
            config = Path(hf_hub_download(str(path_or_hub_id), "config.json", **hub))
        except Exception as error:  # the Hub client raises many kinds; all mean the same to the caller
            raise ValueError(
                f"{where}: no such folder here, and not found on the Hub ({type(error).__name__})"
            ) from None
    return family(read_header(config)["family"]).from_pretrained(str(path_or_hub_id), **hub)


def __getattr__(name: str) -> Any:
    """Lazy access to the classes: `genmodels.VAE` imports torch only when it is used."""
    for target in FAMILIES.values():
        module, _, attribute = target.partition(":")
        if attribute == name:
            return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'genmodels' has no attribute {name!r}")
