"""The folder of `genmodels export --to space`: complete, and its app.py serves its own model."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import yaml

import genmodels
from genmodels import __version__
from genmodels.cli import main
from genmodels.gan import GAN, GANConfig


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    GAN(GANConfig(size=8, channels=(16, 8), blocks=1, group=8, latent_dim=8)).save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def test_a_space_is_complete_and_serves_its_model(run, tmp_path, capsys, monkeypatch):
    out = tmp_path / "space"
    assert main(["export", str(run), str(out), "--to", "space"]) == 0
    assert "python" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"app.py", "README.md", "requirements.txt", "model"}
    assert (out / "requirements.txt").read_text() == f"genmodels[app]=={__version__}\n"
    header = yaml.safe_load((out / "README.md").read_text().split("---")[1])
    assert (header["sdk"], header["app_file"], header["title"]) == ("gradio", "app.py", "gan of 8 px")
    assert torch.equal(genmodels.load(out / "model").generate(2), genmodels.load(run).generate(2))

    spec = importlib.util.spec_from_file_location("space", out / "app.py")
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    calls = []
    monkeypatch.setattr(app, "main", lambda arguments: calls.append(arguments) or 0)
    assert app.run(port=7861) == 0
    assert calls == [["app", str(out / "model"), "--host", "127.0.0.1", "--port", "7861"]]


def test_a_wheel_is_copied_and_named(run, tmp_path, capsys):
    wheel = tmp_path / "genmodels-0.1.0-py3-none-any.whl"
    assert main(["export", str(run), str(tmp_path / "no"), "--to", "space", "--wheel", str(wheel)]) == 1
    assert "not a wheel of genmodels" in capsys.readouterr().err
    wheel.write_bytes(b"wheel")
    assert main(["export", str(run), str(tmp_path / "space"), "--to", "space", "--wheel", str(wheel)]) == 0
    assert (tmp_path / "space" / wheel.name).read_bytes() == b"wheel"
    assert (tmp_path / "space" / "requirements.txt").read_text() == f"genmodels[app] @ file:./{wheel.name}\n"


def test_app_py_builds_the_page_of_its_model(run, tmp_path, monkeypatch):
    server = pytest.importorskip("genmodels.app.server", reason="genmodels app is not there")
    from genmodels.app.page import page

    assert main(["export", str(run), str(tmp_path / "space"), "--to", "space"]) == 0
    pages = []
    monkeypatch.setenv("SPACE_ID", "user/name")
    monkeypatch.setattr(server, "serve", lambda served, host, port: pages.append((page(served), host, port)))
    spec = importlib.util.spec_from_file_location("space", tmp_path / "space" / "app.py")
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    assert app.run() == 0
    ((blocks, *place),) = pages
    assert place == ["0.0.0.0", 7860]
    assert "gan, 8 x 8 pixels" in str(blocks.get_config_file()["components"])
