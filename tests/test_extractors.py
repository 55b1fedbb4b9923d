"""Extractors against their original libraries, with small or random weights."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from unittest.mock import patch
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from genmodels.evaluation import extractors
from genmodels.evaluation.extractors import Extractor, load_extractor, resize_bicubic
from genmodels.evaluation.protocol import Protocol, check_equal
from genmodels.hashing import weights_hash


def pixels(n: int = 2, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def pictures(batch: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in batch]


def refusal(spec: str) -> str:
    with pytest.raises(ValueError) as caught:
        load_extractor(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the layout of the published file, scaled for finite non-zero features."""
    from torch_fidelity import feature_extractor_inceptionv3 as library

    torch.manual_seed(0)
    with (
        patch.object(library, "load_state_dict_from_url"),
        patch.object(library.FeatureExtractorInceptionV3, "load_state_dict"),
    ):
        graph = library.FeatureExtractorInceptionV3("inception", ["2048"])
    for module in graph.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(graph.state_dict(), file)
    return file


@pytest.fixture(scope="session")
def transformers_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Save tiny random DINOv2 and CLIP models. "whole" is a CLIP with its text encoder."""
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("transformers")
    tiny = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    vision = dict(tiny, intermediate_size=64, image_size=28, patch_size=7, projection_dim=16)
    text = dict(tiny, intermediate_size=64, vocab_size=50, bos_token_id=0, eos_token_id=1)
    transformers.Dinov2Model(transformers.Dinov2Config(**tiny, image_size=70)).save_pretrained(root / "dinov2")
    clip = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**vision))
    clip.save_pretrained(root / "clip")
    both = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=16)
    whole = transformers.CLIPModel(both)
    whole.load_state_dict(clip.state_dict(), strict=False)
    whole.save_pretrained(root / "whole")
    for name in ("clip", "whole"):
        size = {"height": 28, "width": 28}
        transformers.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=size).save_pretrained(root / name)
    logging.enable_progress_bar()
    logging.set_verbosity_warning()
    return {path.name: path for path in root.iterdir()}


def test_measures_are_named_after_the_extractor() -> None:
    mine = Extractor("mine", lambda batch: batch.flatten(1).float())
    assert [mine.measure(what) for what in ("fd", "kd", "rfd", "precision")] == [
        "fd-mine", "kd-mine", "rfd-mine", "precision-mine"
    ]  # fmt: skip
    official = Extractor("inception", mine.network, official=True)
    assert [official.measure(what) for what in ("fd", "kd", "rfd", "precision")] == [
        "fid", "kid", "rfid", "precision-inception"
    ]  # fmt: skip
    assert [official.measure(what) for what in ("fd-by-class", "labels")] == ["fid-by-class", "labels-inception"]
    assert mine.measure("fd-by-class") == "fd-by-class-mine"


def test_versions_have_one_name_and_are_not_compared() -> None:
    first, second = (Extractor("mine", lambda images: images, version=version) for version in (None, 2))
    assert first.measure("fd") == second.measure("fd") == "fd-mine"
    protocols = [extractor.protocol(Protocol(n=300)) for extractor in (first, second)]
    with pytest.raises(ValueError, match=r"^fd-mine of a and of b cannot be compared.*version: None and 2"):
        check_equal("fd-mine", ["a", "b"], protocols)


def test_unknown_extractors_are_refused() -> None:
    known = "known: faces, inception, dinov2, clip, each also as NAME=PATH, and own=RUN"
    assert refusal("resnet") == f"unknown extractor 'resnet'; {known}"
    assert refusal("") == f"unknown extractor ''; {known}"
    assert refusal("clip=").startswith("clip=: no path after the equals sign")


def test_weights_hash_is_of_values_not_of_names_or_order() -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3), "c": torch.ones(2, dtype=torch.bfloat16)}
    renamed = {"z": tensors["b"], "y": tensors["c"].clone(), "x": tensors["a"].T.contiguous().T}
    assert weights_hash(tensors, names=False) == weights_hash(renamed, names=False)
    for other in (torch.arange(6.0), torch.arange(6.0).reshape(3, 2), torch.arange(6).reshape(2, 3)):
        assert weights_hash(tensors | {"a": other}, names=False) != weights_hash(tensors, names=False)
    nudged = tensors["a"].clone()
    nudged[1, 2] = nudged[1, 2].nextafter(torch.tensor(9.0))
    assert weights_hash(tensors | {"a": nudged}, names=False) != weights_hash(tensors, names=False)


@pytest.mark.parametrize(("size", "target"), [(64, 224), (96, 28), (40, 40), (33, 50)])
def test_resize_against_pillow(size: int, target: int) -> None:
    batch = pixels(2, size)
    expected = [np.asarray(p.resize((target, target), Image.Resampling.BICUBIC)).astype(int) for p in pictures(batch)]
    found = resize_bicubic(batch, target).permute(0, 2, 3, 1).mul(255).round().int().numpy()
    difference = np.abs(found - np.stack(expected))
    # Pillow's fixed-point arithmetic rounds halves either way, in each of its two passes.
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.02
    assert (difference > 1).mean() < 1e-4


def test_inception_against_torch_fidelity(inception_file: Path) -> None:
    from torch_fidelity.utils import create_feature_extractor

    reference = create_feature_extractor(
        "inception-v3-compat", ["2048"], cuda=False, feature_extractor_weights_path=str(inception_file), verbose=False
    )
    inception = load_extractor(f"inception={inception_file}")
    batch = pixels(2)
    with torch.inference_mode():
        found, expected = inception.network(batch), reference(batch)[0]
    assert found.shape == (2, 2048)
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert inception.weights == weights_hash(reference.state_dict(), names=False)
    # With other weights in the same network, distances are never called FID.
    assert not inception.official
    assert (inception.measure("fd"), inception.measure("kd")) == ("fd-inception", "kd-inception")


def test_only_the_published_file_is_official(inception_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {file[-12:-4] for file in extractors.FID_WEIGHTS} == {extractors.FID_SHA256[:8]}
    digest = hashlib.sha256(inception_file.read_bytes()).hexdigest()
    monkeypatch.setattr(extractors, "FID_SHA256", digest)
    inception = load_extractor(f"inception={inception_file}")
    assert inception.official
    assert (inception.measure("fd"), inception.measure("kd")) == ("fid", "kid")


def test_inception_weights_are_found_downloaded_or_asked_for(
    inception_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    asked = []

    def offline(url: str, target: str, digest: str, progress: bool) -> None:
        asked.append((url.rpartition("/")[2], Path(target), digest))
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    message = refusal("inception")
    name = "weights-inception-2015-12-05-6726825d.pth"
    assert asked == [(name, tmp_path / "checkpoints" / name, extractors.FID_SHA256)]
    assert f"needs {name} and the download failed (<urlopen error no route to host>)" in message
    assert f"put the file into {tmp_path / 'checkpoints'}, or give its path as inception=PATH" in message

    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda url, target, *_, **__: shutil.copy(inception_file, target)
    )
    assert load_extractor("inception").name == "inception"
    (tmp_path / "checkpoints" / name).rename(tmp_path / "checkpoints" / "pt_inception-2015-12-05-6726825d.pth")
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    load_extractor("inception")  # pytorch-fid's copy is the same file
    assert len(asked) == 1


class Trap:
    """Object that runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("a pickle was loaded",))


def test_other_inception_weights_are_refused(inception_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "other.pth"
    assert refusal(f"inception={file}") == f"inception: {file}: no such file"
    assert "cannot be read as weights" in refusal(f"inception={tmp_path}")
    torch.save(nn.Linear(2, 3).state_dict(), file)
    assert "other.pth holds weights of another network" in refusal(f"inception={file}")
    torch.save([torch.zeros(2)], file)
    assert "other.pth holds weights of another network" in refusal(f"inception={file}")
    torch.save({"a": Trap()}, file)
    assert "other.pth cannot be read as weights" in refusal(f"inception={file}")
    for size in (0, 1000, 90_000_000):
        file.write_bytes(inception_file.read_bytes()[:size])
        assert "other.pth cannot be read as weights" in refusal(f"inception={file}")


def test_dinov2_against_transformers(transformers_folders: dict[str, Path]) -> None:
    from transformers import BitImageProcessor, Dinov2Model

    folder = transformers_folders["dinov2"]
    model = Dinov2Model.from_pretrained(folder).eval()
    processor = BitImageProcessor(
        size={"height": 224, "width": 224}, do_center_crop=False,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    )  # fmt: skip
    dinov2 = load_extractor(f"dinov2={folder}")
    for size, tolerance in ((224, 1e-5), (64, 2e-2)):
        batch = pixels(2, size)
        with torch.inference_mode():
            expected = model(**processor(pictures(batch), return_tensors="pt")).pooler_output
            found = dinov2.network(batch)
        assert expected.std() > 0.1
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    assert (dinov2.name, dinov2.official, dinov2.measure("fd")) == ("dinov2", False, "fd-dinov2")
    assert dinov2.resize == "bicubic as in Pillow, to 224 px"


@pytest.mark.parametrize("name", ["clip", "whole"])
def test_clip_against_transformers(transformers_folders: dict[str, Path], name: str) -> None:
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    model = CLIPVisionModelWithProjection.from_pretrained(transformers_folders["clip"]).eval()
    processor = CLIPImageProcessor.from_pretrained(transformers_folders["clip"])
    clip = load_extractor(f"clip={transformers_folders[name]}")
    for size, tolerance in ((28, 1e-5), (64, 2e-2)):
        batch = pixels(3, size)
        with torch.inference_mode():
            expected = model(**processor(pictures(batch), return_tensors="pt")).image_embeds
            found = clip.network(batch)
        assert found.shape == (3, 16)
        torch.testing.assert_close(found, expected / expected.norm(dim=1, keepdim=True), rtol=0, atol=tolerance)
    assert clip.resize == "bicubic as in Pillow, to 28 px"
    assert clip.weights == weights_hash(model.state_dict(), names=False)


def test_clip_takes_its_colours_from_the_checkpoint(transformers_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(transformers_folders["clip"], folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    plain, changed = (load_extractor(f"clip={path}") for path in (transformers_folders["clip"], folder))
    batch = pixels(2, 28)
    with torch.inference_mode():
        assert (plain.network(batch) - changed.network(batch)).abs().max() > 1e-3
    (folder / "preprocessor_config.json").unlink()
    assert "clip cannot be loaded" in refusal(f"clip={folder}")


def test_extractors_are_frozen_and_in_eval_mode(transformers_folders: dict[str, Path], inception_file: Path) -> None:
    batch = pixels(2, 28)
    for spec in (f"dinov2={transformers_folders['dinov2']}", f"clip={transformers_folders['clip']}"):
        extractor = load_extractor(spec)
        found = extractor.network(batch)
        assert not found.requires_grad
        assert found.dtype == torch.float32
        torch.testing.assert_close(extractor.network(batch[:1]), found[:1], rtol=0, atol=1e-5)


def test_transformers_weights_that_are_absent_or_others_are_refused(
    transformers_folders: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, source in (("dinov2", "facebook/dinov2-large"), ("clip", "openai/clip-vit-large-patch14-336")):
        message = refusal(name)
        assert message.startswith(f"{name}: no weights from {source} (We couldn't connect")
        assert f"`hf download {source}`, or give a folder in transformers' layout: {name}=PATH" in message
    assert refusal(f"dinov2={tmp_path / 'none'}") == f"dinov2: {tmp_path / 'none'}: no such folder"
    for name, other in (("dinov2", "clip"), ("clip", "dinov2")):
        message = refusal(f"{name}={transformers_folders[other]}")
        assert "holds weights of another network" in message
        assert "tensors are missing or of another shape, such as " in message

    folder = tmp_path / "dinov2"
    shutil.copytree(transformers_folders["dinov2"], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"image_size": 84}))
    assert "1 tensors are missing or of another shape" in refusal(f"dinov2={folder}")
    (folder / "config.json").write_text(json.dumps(config))
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:5000])
    assert "dinov2 cannot be loaded (" in refusal(f"dinov2={folder}")
    (folder / "model.safetensors").unlink()
    assert "dinov2 cannot be loaded (" in refusal(f"dinov2={folder}")
    torch.save({"embeddings.cls_token": Trap()}, folder / "pytorch_model.bin")
    assert "dinov2 cannot be loaded (Weights only load failed" in refusal(f"dinov2={folder}")
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""


def test_loading_prints_nothing_and_leaves_transformers_as_it_was(
    transformers_folders: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_extractor(f"clip={transformers_folders['whole']}")  # the text tower is left over
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_libraries_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    install = "pip install 'genmodels[evaluation]'"
    assert refusal("inception") == f"inception needs torch-fidelity: {install}"
    assert refusal("dinov2") == f"dinov2 needs transformers: {install}"
    assert refusal("clip") == f"clip needs transformers: {install}"
