"""A family of another package, registered by an entry point, works with every command."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from test_evaluate import EXTRACTOR, faces

import genmodels
from genmodels.cli import main

PACKAGE = Path(__file__).parent / "other_package"
ENTRY_POINTS = "[genmodels.families]\nblobs = blobs:Blobs\nbroken = no_such_module:Broken\nvae = blobs:Blobs\n"


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package as an installer leaves it: importable, with the metadata of its entry points."""
    metadata = tmp_path / "site" / "blobs-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: blobs\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    for folder in (PACKAGE, metadata.parent):
        monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("blobs", None)


def test_it_is_listed_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 0
    listed = capsys.readouterr().out
    assert "  blobs           Colour blobs from a few numbers, for a test.\n" in listed
    assert "broken          not available: family 'broken' is registered as no_such_module:Broken" in listed
    assert "Variational autoencoder" in listed, "a family of ours cannot be replaced"
    assert main(["train", "blobs", "--help"]) == 0
    said = capsys.readouterr().out
    assert "genmodels train blobs" in said and "--model.numbers INT" in said and "Length of the latent vector" in said
    assert main(["train", "blobs", "--help-all"]) == 0
    assert "--optim.betas" in (said := capsys.readouterr().out) and "Micro-batches per optimiser step" in said


def test_train_sample_evaluate_and_compare(
    data: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["--size", "16", "--batch-size", "8", "--steps", "3", "--track", "none", "--model.numbers", "3"]
    assert main(["train", "blobs", *data, *quick, "--output", "runs/blobs"]) == 0
    settings = yaml.safe_load(Path("runs/blobs/config.yaml").read_text())
    assert settings["family"] == "blobs" and settings["model"] == {"size": 16, "numbers": 3}
    assert main(["train", "blobs", "--output", "runs/blobs", "--resume", "--steps", "5"]) == 0
    assert main(["train", "blobs", "--config", "runs/blobs/config.yaml", "--output", "runs/again"]) == 0

    assert main(["sample", "runs/blobs", "--n", "3", "--temperature", "0.5", "--out", "a.npy"]) == 0
    model = genmodels.load("runs/blobs")
    expected = model.generate(3, temperature=0.5)  # (3, 3, 16, 16)
    assert np.abs(np.load("a.npy").transpose(0, 3, 1, 2) / 127.5 - 1 - expected.numpy()).max() < 0.01
    assert main(["reconstruct", "runs/blobs", "faces/00.png"]) == 0
    capsys.readouterr()
    assert main(["inpaint", "runs/blobs", "faces/00.png"]) == 1
    assert "blobs models do not complete images" in capsys.readouterr().err
    assert main(["info", "runs/blobs"]) == 0

    monkeypatch.setattr("genmodels.evaluation.extractors.load_extractor", lambda spec, device="cpu": EXTRACTOR)
    np.save("real.npy", faces().images[:300])
    measured = ["--data", "real.npy", "--n", "256"]
    assert main(["evaluate", "runs/blobs", *measured, "--json", "blobs.json"]) == 0
    scores = json.loads(Path("blobs.json").read_text())["scores"]
    assert {"fd-colours", "psnr", "parameters"} <= scores.keys()
    assert main(["compare", "runs/blobs", "blobs.json", *measured, "--out", "report"]) == 0
    assert "runs/blobs" in Path("report/index.html").read_text()


def test_a_package_that_cannot_be_imported_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "broken"]) == 1
    assert "which cannot be imported" in capsys.readouterr().err
