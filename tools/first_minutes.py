"""A new user's first ten minutes: install the wheel into an empty environment and try everything.

    make dist && python tools/first_minutes.py
    python tools/first_minutes.py --wheel dist/genmodels-0.1.0-py3-none-any.whl --python python3.13

Each step is one line with its seconds. A step that warns has failed, as one that ends with an error
has: the first of them is printed with everything it said, and the exit status is 1. Only the
standard library is needed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.request import urlopen

ROOT = Path(__file__).parent.parent
PHOTOS = """
from pathlib import Path
import numpy as np
from PIL import Image
from genmodels.data.toyfaces import draw

Path("photos").mkdir()
for number, face in enumerate(draw(1, np.arange(10), 300)[0]):
    Image.fromarray(np.pad(face, ((60, 40), (0, 0), (0, 0)), "edge")).save(f"photos/{number}.jpg")
"""
"""Program that writes ten photos of 300 x 400 pixels."""
VISIT = """
import sys
from gradio_client import Client

gallery, command, *_ = Client(sys.argv[1], verbose=False).predict(seed=7, n=4, api_name="/toyfaces_vae_sample")
assert len(gallery) == 4 and "--seed 7" in command, command
"""
"""Program that draws samples through the API of the page at an address."""


class Walk:
    """Commands in a new environment and a folder of their own, with empty caches as on a new machine.

    Args:
        folder: existing, empty folder for the environment and all files.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        taken = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        self.environment = {name: value for name, value in os.environ.items() if name not in taken} | {
            "PATH": os.pathsep.join([str(folder / "env" / "bin"), os.environ.get("PATH", os.defpath)]),
            "XDG_CACHE_HOME": str(folder / "cache"),
        }

    def run(self, *command: str) -> str:
        """Run a command; return nothing to remark.

        Raises:
            RuntimeError: if it fails or warns; the message is what it said.
        """
        ended = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        if ended.returncode or re.search(r"Warning:|Traceback", ended.stdout):
            raise RuntimeError(f"{' '.join(command)}\nended with status {ended.returncode} and said:\n{ended.stdout}")
        return ""

    def app(self) -> str:
        """Serve the shipped models and draw samples through the API; return when the page answered."""
        log, began = self.folder / "app.log", time.monotonic()
        with log.open("wb") as said:
            server = subprocess.Popen(
                ["genmodels", "app"], cwd=self.folder, env=self.environment, stdout=said, stderr=subprocess.STDOUT
            )
        try:
            while not (found := re.search(r"http://\S+", log.read_text())):
                if server.poll() is not None:
                    raise RuntimeError(f"genmodels app\nended with status {server.returncode}:\n{log.read_text()}")
                time.sleep(0.05)
            with urlopen(found[0]) as page:
                page.read()
            answered = time.monotonic() - began
            self.run("python", "-c", VISIT, found[0])
        finally:
            server.terminate()
            server.wait()
        return f", of which {answered:.1f} s until the page answered"


def steps(walk: Walk, wheel: Path, python: str, minutes: float) -> dict[str, Callable[[], str]]:
    """Return the steps in order, each with its title."""
    run = partial(partial, walk.run)
    train = ("genmodels", "train", "vae", "--data", "folder", "--root", "photos", "--size", "64")
    return {
        "an empty environment": run(python, "-m", "venv", "env"),
        "install the wheel": run("python", "-m", "pip", "install", "--quiet", str(wheel)),
        "genmodels models": run("genmodels", "models"),
        "genmodels sample": run("genmodels", "sample", "toyfaces/vae", "--out", "faces.png"),
        "install the extra of the page": run("python", "-m", "pip", "install", "--quiet", f"{wheel}[app]"),
        "genmodels app, and samples through its API": walk.app,
        "ten photos": run("python", "-c", PHOTOS),
        f"genmodels train, {minutes:g} minutes": run(*train, "--minutes", f"{minutes:g}", "--output", "runs/vae"),
        "genmodels sample of that run": run("genmodels", "sample", "runs/vae", "--n", "64", "--out", "samples.png"),
        "genmodels reconstruct": run("genmodels", "reconstruct", "runs/vae", "photos/1.jpg", "--out", "pairs.png"),
        "genmodels evaluate": run("genmodels", "evaluate", "runs/vae"),
        "genmodels compare": run("genmodels", "compare", "runs/vae", "--out", "report/"),
        "genmodels demo": run("genmodels", "demo"),
    }


def main(wheel: Path | None, python: str, folder: Path, minutes: float) -> int:
    """Take all steps in a folder, also after one that failed; return the exit status."""
    wheels = [wheel] if wheel else sorted((ROOT / "dist").glob("genmodels-*.whl"))
    if len(wheels) != 1 or not wheels[0].exists():
        print(f"first_minutes: error: one wheel is needed, found {wheels}: run make dist", file=sys.stderr)
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    began, failed = time.monotonic(), 0
    for title, take in steps(Walk(folder), wheels[0].resolve(), python, minutes).items():
        start = time.monotonic()
        try:
            remark = take()
        except (OSError, RuntimeError) as error:
            remark = f" FAILED: {str(error) if not failed else str(error).strip().splitlines()[-1]}"
            failed += 1
        print(f"{time.monotonic() - start:7.1f} s  {title}{remark}", flush=True)
    print(f"{time.monotonic() - began:7.1f} s  in total, {failed} steps failed")
    return int(failed > 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="file to install; default: the one in dist/")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environment")
    parser.add_argument("--folder", type=Path, help="empty folder to work in and keep; default: a temporary one")
    parser.add_argument("--minutes", type=float, default=2.0, help="budget of the training (default: 2)")
    given = parser.parse_args()
    with suppress(KeyboardInterrupt), tempfile.TemporaryDirectory() as temporary:
        where = given.folder or Path(temporary)
        sys.exit(main(given.wheel, given.python, where.resolve(), given.minutes))
