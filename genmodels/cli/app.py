"""The command that serves a page to try models on.

Signatures and docstrings are what `--help` prints. Slow imports are inside the functions.
"""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from genmodels.cli.arguments import load
from genmodels.cli.directions import labelled_images
from genmodels.cli.real_images import EvaluationFlags, real_images
from genmodels.cli.run_folder import read_trained
from genmodels.usage import UsageError

if TYPE_CHECKING:
    from genmodels.app.work import Served
    from genmodels.evaluation.reference import Reference

PORT = 7860


def app(runs: Positional[tuple[str, ...]] = (), host: str = "127.0.0.1", port: int = PORT) -> None:
    """Serve a page to try models on in a browser.

    The page offers what each model can do: samples, variations, interpolation, painting and more.
    It is open until Ctrl+C. It needs the extra: pip install "genmodels[app]".

    Args:
        runs: run or model folders, toyfaces/NAME, or ids on the Hub. None: the models of the
            package.
        host: address to listen on. The default is this machine only, 0.0.0.0 is every network: then
            anyone who reaches it can use the models.
        port: port to listen on. If it is busy, the next free one is used.
    """
    if not 1 <= port <= 65535:
        raise UsageError(f"--port must be from 1 to 65535, got {port}")
    if importlib.util.find_spec("gradio") is None:
        raise ValueError('the page needs gradio, which is not installed: pip install "genmodels[app]"')
    served = [served_model(run) for run in dict.fromkeys(runs or shipped())]

    from genmodels.app.server import serve

    serve(served, host, port)


def shipped() -> tuple[str, ...]:
    """Return the names of the models of the package."""
    from genmodels.shipped import names

    return tuple(names())


def served_model(run: str) -> Served:
    """Load a model for the page, and say where the images of its tabs come from."""
    from genmodels.app.work import Served

    model = load(run)
    model.check_complete()
    size = model.config.size
    return Served(
        name=run,
        model=model,
        attributes=_attributes(run, size),
        labelled=partial(labelled_images, run, size),
        searched=partial(_searched, run, size),
        folder=Path(run).absolute() if Path(run).exists() else None,
    )


def _attributes(run: str, size: int) -> tuple[str, ...]:
    """Return the attributes of the images that a run was trained on, () if they are not here."""
    from genmodels.data import open_data
    from genmodels.data.toyfaces import ATTRIBUTES

    trained = read_trained(run)
    if trained.data == "toyfaces":
        return ATTRIBUTES  # which need not be drawn for this
    try:
        return tuple(open_data(trained.data, trained.root, size, trained.crop).attribute_names) if trained.data else ()
    except (ValueError, OSError):
        return ()


def _searched(run: str, size: int) -> Reference:
    """Open the held-out images of the data that a run was trained on."""
    return real_images([run], EvaluationFlags()).of_size(size)
