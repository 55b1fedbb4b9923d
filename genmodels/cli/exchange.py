"""Commands that exchange models with other libraries: export and import.

Signatures and docstrings are what `--help` prints. Slow imports are inside the functions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from genmodels.cli.arguments import check_empty, load


def export(run: Positional[str], out: Positional[Path], to: Literal["diffusers"] = "diffusers") -> None:
    """Write a model as a folder that another library loads without genmodels.

    Args:
        run: run or model folder, or an id on the Hub.
        out: new or empty folder.
        to: library that loads it.
    """
    from genmodels.exchange.export import export_to_diffusers

    print(f"{out} is {export_to_diffusers(load(run), out)}")


def import_(pipeline: Positional[Path], out: Positional[Path]) -> None:
    """Convert a pipeline of diffusers to a genmodels model.

    Every command also reads the folder of the pipeline itself.

    Args:
        pipeline: folder of a DDPMPipeline, DDIMPipeline, LDMPipeline or DiTPipeline.
        out: new or empty folder for the model.
    """
    from genmodels.exchange.importing import import_pipeline, is_pipeline

    if not pipeline.is_dir():
        raise ValueError(f"{pipeline}: no such folder")
    if not is_pipeline(pipeline):
        raise ValueError(f"{pipeline} is not a pipeline of diffusers: it has no model_index.json")
    check_empty(out)
    model = import_pipeline(pipeline)
    model.save_pretrained(out)
    print(f"{model.family} model of {model.config.size} px in {out}: genmodels sample {out}")
