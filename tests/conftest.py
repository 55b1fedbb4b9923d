"""What every test starts from: no network, no user's cache, one thread, seeded generators."""

from __future__ import annotations

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

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Packed data goes to a folder of this test session, in subprocesses too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENMODELS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
