"""Commands that exchange models with other libraries: export and import.

Signatures and docstrings are what `--help` prints. Slow imports are inside the functions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from genmodels.cli.arguments import check_empty, load


def export(run: Positional[str], out: Positional[Path], to: Literal["diffusers", "transformers"] = "diffusers") -> None:
    """Write a model as a folder that another library loads without genmodels.

    Args:
        run: run or model folder, toyfaces/NAME, or an id on the Hub.
        out: new or empty folder.
        to: library that loads it: diffusers for a unet, dit, kl or tiny, transformers for a clip.
    """
    from genmodels.exchange.clip import export_to_transformers
    from genmodels.exchange.export import export_to_diffusers

    write = {"diffusers": export_to_diffusers, "transformers": export_to_transformers}[to]
    print(f"{out} is {write(load(run), out)}")


def import_(folder: Positional[Path], out: Positional[Path]) -> None:
    """Convert a pipeline of diffusers, or a CLIPModel of transformers, to a genmodels model.

    Every command also reads the folder itself.

    Args:
        folder: folder of a DDPMPipeline, DDIMPipeline, LDMPipeline, DiTPipeline, StableDiffusionPipeline or
            CLIPModel.
        out: new or empty folder for the model.
    """
    from genmodels.exchange.importing import import_folder
    from genmodels.saving import is_foreign

    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    if not is_foreign(folder):
        raise ValueError(f"{folder} is not a pipeline of diffusers, since it has no model_index.json, nor a CLIPModel")
    check_empty(out)
    model = import_folder(folder)
    model.save_pretrained(out)
    print(f"{model.family} model of {model.config.size} px in {out}: genmodels info {out}")
