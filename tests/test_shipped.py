"""Models of the package: names, sizes, licences, and what they sample."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import genmodels
from genmodels.ae import AE, AEConfig
from genmodels.cli import main
from genmodels.saving import halve
from genmodels.shipped import FOLDER, locate, names, read_scores

ROOT = Path(__file__).parent.parent
MEGABYTE = 1e6


def small() -> AE:
    torch.manual_seed(0)
    return AE(AEConfig(size=16, channels=(16,), encoder_blocks=(0,), decoder_blocks=(0,), latent_dim=24))


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("name", names())
def test_a_model_of_the_package_is_small_and_samples(name: str) -> None:
    folder = FOLDER / name
    assert size_of(folder) <= 3 * MEGABYTE
    card = (folder / "README.md").read_text()
    assert "\nlicense: apache-2.0\n" in card and f'load("{name}")' in card
    recipe = yaml.safe_load((folder / "config.yaml").read_text())
    assert recipe["data"] == "toyfaces" and "output" not in recipe
    assert not any(str(value).startswith("/") for value in recipe.values())
    model = genmodels.load(name)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    if model.can("sample"):
        images = model.generate(2, seed=0)
        assert images.shape == (2, 3, 64, 64)
        # Means and standard deviations of 1,000 toyfaces lie in (-0.71, 0.40) and (0.21, 0.81).
        assert (images.mean((1, 2, 3)).abs() < 0.8).all()
        assert ((images.std((1, 2, 3)) > 0.15) & (images.std((1, 2, 3)) < 0.9)).all()
        assert (images[0] - images[1]).abs().mean() > 0.05


def test_the_models_of_the_package_fit_into_15_megabytes() -> None:
    assert 0 < size_of(FOLDER) <= 15 * MEGABYTE
    assert set(read_scores()) <= set(names())


def test_a_folder_here_comes_before_a_model_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate("toyfaces/vae") == FOLDER / "toyfaces" / "vae"
    assert genmodels.load(Path("toyfaces/vae")).family == "vae"
    assert locate("runs/vae") == Path("runs/vae") and locate("./toyfaces") == Path("toyfaces")
    small().save_pretrained("toyfaces/vae")
    assert locate("toyfaces/vae") == Path("toyfaces/vae")
    assert genmodels.load("toyfaces/vae").family == "ae"


def test_an_unknown_name_lists_the_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["info", "toyfaces/vea"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(name in error for name in ("toyfaces/vea", *names()))


def test_commands_take_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "toyfaces/vae", "--n", "2", "--out", "x.npy"]) == 0
    assert (tmp_path / "x.npy").is_file()
    assert main(["info", "toyfaces/vae"]) == 0
    out = capsys.readouterr().out
    assert "data=toyfaces" in out and "MB of weights" in out


def test_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert list(facts) == names()
    vae = facts["toyfaces/vae"]
    model = genmodels.load("toyfaces/vae")
    assert vae["family"] == "vae" and vae["parameters"] == sum(p.numel() for p in model.parameters())
    assert {"sample", "reconstruct", "interpolate"} <= set(vae["abilities"])
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert all(f"{name}: " in out for name in names()) and f"{vae['parameters']:,}" in out
    assert "\u2026" not in out, "80 characters cut no number off"


def test_half_precision_on_disk_is_loaded_as_float32(tmp_path: Path) -> None:
    model = small()
    model.save_pretrained(tmp_path / "half")
    halve(tmp_path / "half")
    stored = load_file(tmp_path / "half" / "model.safetensors")
    kinds = {name: value.dtype for name, value in stored.items() if value.is_floating_point()}
    assert set(kinds.values()) == {torch.float16, torch.float32}
    loaded = genmodels.load(tmp_path / "half").state_dict()
    for name, value in model.state_dict().items():
        assert loaded[name].dtype == value.dtype
        expected = value.half().float() if kinds.get(name) == torch.float16 else value
        assert torch.equal(loaded[name], expected)
    with torch.no_grad():
        next(p for p in model.parameters() if p.numel() >= 4096).fill_(1e5)
    model.save_pretrained(tmp_path / "large")
    with pytest.raises(ValueError, match="too large for half precision"):
        halve(tmp_path / "large")
    header = tmp_path / "half" / "config.json"
    header.write_text(header.read_text().replace('"float32"', '"float8"'))
    with pytest.raises(ValueError, match="precision: expected float32, got 'float8'"):
        genmodels.load(tmp_path / "half")


def test_sampling_imports_no_library_that_is_slow_and_not_needed(tmp_path: Path) -> None:
    """The first image of a new installation should appear within ten seconds."""
    command = ["sample", "toyfaces/vae", "--n", "4", "--out", "x.png"]
    slow = {"diffusers", "sklearn", "scipy", "pandas", "torch._dynamo", "sympy", "torchvision"}
    code = f"import sys; from genmodels.cli import main; print(main({command}), sorted(sys.modules.keys() & {slow}))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stdout + done.stderr
