"""Shared set-up of all tests: no network, a cache of their own, one thread, seeded generators."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported: two test processes on two cores are fastest with one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parent.parent


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of garbage collections, which would search it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Write packed data to a folder of this test session, also in subprocesses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENMODELS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _brief_measurements() -> Iterator[None]:
    """Time a single batch where an evaluation times 3 seconds of them: no test asserts how fast a model is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("genmodels.evaluation.cost.SPEED_SECONDS", 0.0)
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make a folder of 40 smooth images with one attribute, and return arguments of a recipe.

    Runs draw grids of 4 samples, not of 64.
    """
    monkeypatch.setattr("genmodels.training.show.GRID", 4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENMODELS_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    rows = ["name,Smiling"]
    for i in range(40):
        coarse = rng.integers(0, 256, (4, 4, 3), np.uint8).repeat(4, 0).repeat(4, 1)
        (tmp_path / "faces").mkdir(exist_ok=True)
        Image.fromarray(coarse).save(tmp_path / "faces" / f"{i:02d}.png")
        rows.append(f"{i:02d}.png,{1 if i % 2 else -1}")
    (tmp_path / "faces" / "attributes.csv").write_text("\n".join(rows) + "\n")
    return ["--data", "folder", "--root", str(tmp_path / "faces")]
