"""A Space of the Hugging Face Hub: a folder whose app.py serves the page of `genmodels app`."""

from __future__ import annotations

import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from genmodels import __version__
from genmodels.writing import is_free, replacing_folder, write_text

APP = '''"""The page of a model on the Hugging Face Hub. Here: python app.py, then http://localhost:7860."""

import os
import sys
from pathlib import Path

from genmodels.cli import main

MODEL = Path(__file__).parent / "model"
HOST = "0.0.0.0" if "SPACE_ID" in os.environ else "127.0.0.1"  # the Hub sets SPACE_ID


def run(host: str = HOST, port: int = 7860) -> int:
    """Serve the page until the process ends, and return its exit status."""
    return main(["app", str(MODEL), "--host", host, "--port", str(port)])


if __name__ == "__main__":
    sys.exit(run())
'''
README = """---
title: {title}
sdk: gradio
sdk_version: {gradio}
python_version: "3.12"
app_file: app.py
license: apache-2.0
tags:
  - genmodels
---

# {title}

A page to try a {kind} of {size} px on, made by `genmodels export --to space`. The license above is
that of this folder's code: change it if that of the model is another.

Here:

    pip install -r requirements.txt
    python app.py

On the Hub: create a Space of the SDK "gradio" and push this folder to it.
"""
GRADIO = "6.0.0"
"""Version of gradio in the README of a Space, if none is installed."""


def export_to_space(model: Any, out: Path, wheel: Path | None = None) -> str:
    """Write a Space into the new or empty folder `out`, as a whole.

    Args:
        model: the model, which is saved in the folder too.
        out: the folder.
        wheel: wheel of genmodels, which is copied and installed. None: requirements.txt names the
            package of this version, which has to be on an index then.

    Returns:
        One line on how to use the folder.

    Raises:
        ValueError: for a prior without its codec, or a file that is not a wheel of genmodels.
            Nothing has been written then.
    """
    model.check_complete()
    if not is_free(out):
        raise ValueError(f"{out} is not an empty folder: choose another")
    if wheel is not None and not (wheel.is_file() and wheel.match("genmodels-*.whl")):
        raise ValueError(f"--wheel {wheel}: not a wheel of genmodels: make one with python -m build --wheel")
    try:
        gradio = version("gradio")
    except PackageNotFoundError:
        gradio = GRADIO
    title = f"{model.kind} of {model.config.size} px"
    with replacing_folder(out) as draft:
        model.save_pretrained(draft / "model")
        write_text(draft / "app.py", APP)
        about = README.format(title=title, gradio=gradio, kind=model.kind, size=model.config.size)
        write_text(draft / "README.md", about)
        if wheel is None:
            write_text(draft / "requirements.txt", f"genmodels[app]=={__version__}\n")
        else:
            shutil.copyfile(wheel, draft / wheel.name)
            write_text(draft / "requirements.txt", f"genmodels[app] @ file:./{wheel.name}\n")
    source = f"genmodels {__version__} from an index" if wheel is None else wheel.name
    return f"a Space that installs {source}: python {out / 'app.py'}, or push the folder to a Space of the Hub"
