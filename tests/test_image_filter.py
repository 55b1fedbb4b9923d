"""The image filter: a classifier of the user, whose class 0 is allowed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import genmodels
from genmodels import sampling
from genmodels.cli import main
from genmodels.image_filter import image_filter

MODEL = "toyfaces/vae"
N = 12


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a small ViT with random weights, which flags some of the samples of seed 0."""
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.ViTConfig(**small, image_size=16, patch_size=8, num_labels=2)
    network = transformers.ViTForImageClassification(config).eval()
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    processor = transformers.ViTImageProcessor(size={"height": 16, "width": 16})
    with torch.no_grad():
        logits = network(processor(pictures(), return_tensors="pt").pixel_values).logits
        difference = (logits[:, 1] - logits[:, 0]).sort().values
        network.classifier.bias[0] += difference[N // 2 - 1 : N // 2 + 1].mean()  # flags half of them
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def samples() -> np.ndarray:
    return sampling.sample(genmodels.load(MODEL), N, progress=False)


def pictures() -> list[Image.Image]:
    return [Image.fromarray(image) for image in samples()]


def test_images_that_the_classifier_flags_are_black(classifier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = transformers.pipeline("image-classification", model=str(classifier))
    flagged = np.array([found[0]["label"] == "LABEL_1" for found in pipeline(pictures())])
    assert flagged.sum() == N // 2
    model = genmodels.load(MODEL)
    model.image_filter = image_filter(classifier)
    shown = sampling.sample(model, N, progress=False)
    assert (shown[flagged] == 0).all()
    assert np.array_equal(shown[~flagged], samples()[~flagged])
    assert f"the image filter flagged {N // 2} of {N} images, which are black: try" in capsys.readouterr().err


def test_weights_in_half_precision_are_applied_in_float32(tmp_path: Path) -> None:
    """A ResNet does not convert its inputs to the precision of its weights."""
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "num_labels": 2}
    network = transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes)).half()
    images = torch.rand(N, 3, 16, 16) * 2 - 1
    for dtype in (torch.float16, torch.float32):
        folder = tmp_path / str(dtype)
        network.to(dtype).save_pretrained(folder)
        transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    flagged = image_filter(tmp_path / str(torch.float16))(images)
    assert torch.equal(flagged, image_filter(tmp_path / str(torch.float32))(images))


def test_the_flag_applies_the_filter(classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "samples.npy"
    assert main(["sample", MODEL, "--n", str(N), "--out", str(out), "--image-filter", str(classifier)]) == 0
    assert (np.load(out).reshape(N, -1).max(1) == 0).sum() == N // 2
    assert f"flagged {N // 2} of {N} images" in capsys.readouterr().err


def test_filters_that_cannot_work_are_refused(classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^--image-filter .*absent: no such folder$"):
        image_filter(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"^--image-filter .*: not an image classifier of transformers \([^\n]*\)$"):
        image_filter(tmp_path)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (damaged / name).write_bytes((classifier / name).read_bytes())
    (damaged / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match="not an image classifier of transformers"):
        image_filter(damaged)
