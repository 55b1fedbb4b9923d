"""What is a path and what is an id of the Hub, and how often the Hub is asked."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError

import genmodels
from genmodels.ae import AE, AEConfig
from genmodels.cli import main
from genmodels.hub import folder_of


class Hub:
    """A Hub without a network, which counts its requests."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path | None = None, error: Exception | None = None):
        self.asked: list[str] = []
        self.downloaded: list[tuple[str, bool]] = []
        self.folder, self.error = folder, error
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", self.ask)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.download)

    def ask(self, url: str, **_: Any) -> None:
        self.asked.append(url)
        if self.error:
            raise self.error

    def download(self, name: str, file: str, local_files_only: bool = False, **_: Any) -> str:
        self.downloaded.append((file, local_files_only))
        if self.folder is None:
            raise FileNotFoundError("not in the cache")
        return str(self.folder / file)


@pytest.mark.parametrize(
    "path", ["~no-such-user/a", "./a", "../a/b", "/no/such", "~/no-such", "runs/vae/", "a\\b", "a/b/c", "a", "runs/x"]
)
def test_a_mistyped_path_fails_at_once(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()  # so runs/x is a path
    hub = Hub(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match="no such model folder") as error:
        genmodels.load(path)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no such model folder"):
        AE.from_pretrained(path)
    with pytest.raises(ValueError, match="no such model folder"):
        genmodels.load(Path("user/name"))
    assert hub.asked == hub.downloaded == []
    assert main(["info", path]) == 1


def test_an_id_is_tried_on_the_hub_once_and_quietly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    hub = Hub(monkeypatch, error=ConnectionError("no network"))
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(ValueError, match="no such model on the Hub .no network"),
    ):
        genmodels.load("user/name")
    assert len(hub.asked) == 1 and hub.asked[0].endswith("user/name/resolve/main/config.json")
    assert hub.downloaded == [("config.json", True)]  # the cache; no second file when the first is absent
    assert not caplog.records


def test_without_a_network_the_cache_of_the_hub_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = AEConfig(size=8, channels=(8,), encoder_blocks=(1,), decoder_blocks=(1,), latent_dim=2)
    AE(small).save_pretrained(tmp_path / "saved")
    hub = Hub(monkeypatch, tmp_path / "saved", ConnectionError("no network"))
    assert genmodels.load("user/name").config == small
    assert hub.downloaded == [("config.json", True), ("model.safetensors", True)]
    assert AE.from_pretrained("user/name", local_files_only=True).config == small
    assert len(hub.asked) == 1  # for load


@pytest.mark.parametrize(("status", "asks_the_cache"), [(401, 0), (403, 0), (404, 0), (429, 2), (500, 2), (503, 2)])
def test_an_outage_of_the_hub_leaves_its_cache(
    status: int, asks_the_cache: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = HfHubHTTPError(f"status {status}", response=SimpleNamespace(status_code=status, headers={}, request=None))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cache").mkdir()
    hub = Hub(monkeypatch, tmp_path / "cache", error)
    if asks_the_cache:
        assert folder_of("user/name") == tmp_path / "cache"
    else:
        with pytest.raises(ValueError, match=f"no such model on the Hub .status {status}"):
            folder_of("user/name")
    assert hub.downloaded == [("config.json", True), ("model.safetensors", True)][:asks_the_cache]


def test_a_mistyped_argument_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hub = Hub(monkeypatch, tmp_path)
    for name in ("user/name", str(tmp_path)):
        with pytest.raises(TypeError, match="revison"):
            genmodels.load(name, revison="main")
    assert hub.asked == []


def test_a_folder_of_the_name_of_a_user_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "google").mkdir()
    with pytest.raises(ValueError, match=r"no such model folder \(google is a folder here, so the Hub was not asked\)"):
        genmodels.load("google/ddpm-celebahq-256")


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "config.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="was not written by genmodels"):
        genmodels.load("~/saved")


def test_further_files_of_a_model_are_downloaded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config.json"
    checker = ["safety_checker.safetensors", "safety_checker.json"]
    over_codec = '{"model": {"prior": {"model": {"text": {"tokenizer": "ab"}}}, "safety_checker": true}}'
    for text, further in (
        ('{"model": {"tokenizer": "ab"}}', ["tokenizer.json"]),
        (over_codec, ["tokenizer.json", *checker]),
        ('{"model": {"text": {"tokenizer": ""}, "safety_checker": false}}', []),
        ("[1]", []),
        ("{", []),
    ):
        config.write_text(text)
        hub = Hub(monkeypatch, tmp_path)
        assert folder_of("user/name") == tmp_path
        assert [file for file, _ in hub.downloaded] == ["config.json", "model.safetensors", *further]
