"""Settings and files of the benchmarks that sample from a run and score the samples."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tyro.conf import Positional

from genmodels.cli.arguments import check_free, load
from genmodels.data import Packed, open_data


@dataclass(frozen=True)
class RunSettings:
    """Settings of such a benchmark."""

    run: Positional[str]
    """Run folder of the model."""
    data: str = "toyfaces"
    """toyfaces, celeba, folder, or the path of a packed directory."""
    root: Path | None = None
    """Folder with the images of celeba or folder."""
    n: int = 1000
    """Number of samples of each measurement, of seed 0."""
    schedule: str | None = None
    """Time schedule of a diffusion model. None: the default of its process."""
    json: Path | None = None
    """File to write the results to."""
    save: Path | None = None
    """Folder to save the samples of every measurement to, as .npy files."""
    force: bool = False
    """Overwrite existing files."""

    def open(self) -> tuple[Any, Packed]:
        """Return the model, and the data at its size; exit with one line if a file is in the way."""
        try:
            if self.json is not None:
                check_free(self.json, self.force, ".json")
            if self.save is not None and self.save.exists() and any(self.save.iterdir()) and not self.force:
                raise ValueError(f"{self.save} is not empty: choose another --save, or overwrite with --force")
            model = load(self.run)
            return model, open_data(self.data, self.root, model.config.size)
        except (ValueError, OSError) as error:
            raise SystemExit(str(error)) from None

    def save_samples(self, name: str, samples: np.ndarray) -> None:
        """Save samples as NAME.npy if --save was given."""
        if self.save is not None:
            self.save.mkdir(parents=True, exist_ok=True)
            np.save(self.save / f"{name}.npy", samples)

    def write(self, rows: list[dict[str, Any]], **facts: Any) -> None:
        """Write the results if --json was given."""
        if self.json is not None:
            self.json.parent.mkdir(parents=True, exist_ok=True)
            results = {"run": Path(self.run).name, "schedule": self.schedule, **facts, "n": self.n, "rows": rows}
            self.json.write_text(json.dumps(results, indent=2) + "\n")
