"""`genmodels retrieve` and `embed`: results in order, files written, and input refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from oracle_clip import NAMES, Oracle, OracleConfig, quarters
from PIL import Image
from test_cli import fails
from tiny_model import OnlySamples, TinyConfig

import genmodels
from genmodels.cli import main


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Save a model, images and sentences, and change to their folder."""
    monkeypatch.setenv("GENMODELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(genmodels.FAMILIES, "oracle", "oracle_clip:Oracle")
    monkeypatch.setitem(genmodels.FAMILIES, OnlySamples.family, "tiny_model:OnlySamples")
    monkeypatch.chdir(tmp_path)
    Oracle(OracleConfig()).save_pretrained("run")
    OnlySamples(TinyConfig()).save_pretrained("other")
    data = quarters(60)
    np.save("images.npy", data.images)
    for i in range(2):
        Image.fromarray(data.images[i]).save(f"{i}.png")
    Path("lines.txt").write_text("a smiling man\na woman who is not smiling\na smiling woman\n")
    return tmp_path / "run"


def test_the_images_of_a_sentence_are_a_sheet_in_order(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["retrieve", "run", "a smiling man", "--data", "images.npy", "--n", "10"]
    assert main(command) == 0
    assert "the 10 images of images.npy (60) that are closest" in capsys.readouterr().out
    sheet = np.asarray(Image.open("retrieved.png"))
    assert sheet.shape[1] == 8 * 136 + 8
    first = sheet[8 + 18 : 8 + 18 + 128, 8 : 8 + 128]  # bright where the attributes are there
    assert NAMES[:2] == ("Male", "Smiling") and first[20, 20].min() > 150 and first[20, 100].min() > 150
    data = quarters(60)
    wanted = (data.attributes[:, :2] == 1).all(1).sum()
    assert wanted >= 10  # all ten have both
    for place in range(8):
        assert sheet[30, 8 + place * 136 + 20].min() > 150 and sheet[30, 8 + place * 136 + 100].min() > 150
    assert "retrieved.png exists" in fails(capsys, 1, *command)
    assert main([*command, "--force"]) == 0


def test_the_sentences_of_an_image_are_printed_in_order(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = quarters(60).attributes[0]
    assert main(["retrieve", "run", "0.png", "--data", "lines.txt", "--n", "9"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert [float(line[:6]) for line in lines] == sorted((float(line[:6]) for line in lines), reverse=True)
    agreeing = {"a smiling man": (1, 1), "a woman who is not smiling": (-1, -1), "a smiling woman": (-1, 1)}
    matches = {text: sum(a == b for a, b in zip(pair, values[:2], strict=True)) for text, pair in agreeing.items()}
    assert matches[lines[0][8:]] == max(matches.values())
    assert not Path("retrieved.png").exists()


def test_embeddings_of_images_sentences_and_data(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embed", "run", "0.png", "1.png", "--out", "new/x.npy"]) == 0
    assert "2 images, each as 4 numbers" in capsys.readouterr().out
    assert main(["embed", "run", "--data", "images.npy", "--out", "all.npy"]) == 0
    files, data = np.load("new/x.npy"), np.load("all.npy")
    np.testing.assert_allclose(files, data[:2], atol=1e-6)
    assert data.shape == (60, 4) and data.dtype == np.float32
    np.testing.assert_allclose((data**2).sum(1), 1, atol=1e-5)
    assert main(["embed", "run", "a smiling man", "a woman", "--out", "texts.npy"]) == 0
    texts = np.load("texts.npy")
    np.testing.assert_allclose(texts, [[0.5**0.5, 0.5**0.5, 0, 0], [-1, 0, 0, 0]], atol=1e-5)
    assert main(["embed", "run", "lines.txt", "--out", "lines.npy"]) == 0
    np.testing.assert_allclose(np.load("lines.npy")[0], texts[0], atol=1e-6)
    assert "texts.npy exists" in fails(capsys, 1, "embed", "run", "a man", "--out", "texts.npy")


@pytest.mark.parametrize(
    ("status", "arguments", "expected"),
    [
        (2, ["retrieve", "run", " "], "the query is empty"),
        (2, ["retrieve", "run", "a man", "--n", "0"], "--n must be at least 1"),
        (1, ["retrieve", "run", "fcae.jpg", "--data", "lines.txt"], "fcae.jpg: No such file"),
        (1, ["retrieve", "run", "a man " * 60, "--data", "images.npy"], "has 360 tokens, at most 200 fit"),
        (1, ["retrieve", "run", "0.png", "--data", "images.npy"], "the images have no captions"),
        (1, ["retrieve", "run", "0.png", "--data", "none.txt"], "none.txt: No such file"),
        (2, ["retrieve", "run", "0.png", "--data", "lines.txt", "--out", "x.png"], "the sentences for an image are"),
        (2, ["retrieve", "run", "a man", "--data", "lines.txt"], "holds sentences"),
        (2, ["retrieve", "run", "a man", "--data", "images.npy", "--out", "x.gif"], "must end in .png or .jpg"),
        (2, ["retrieve", "run", "a man"], "does not record which images it was trained on: give --data"),
        (1, ["retrieve", "run", "a man", "--data", "nowhere"], "expected toyfaces"),
        (1, ["retrieve", "other", "a man", "--data", "images.npy"], "do not embed images and sentences in one space"),
        (1, ["retrieve", "nowhere", "a man", "--data", "images.npy"], "no such model folder"),
        (2, ["embed", "run", "0.png", "a man"], "'a man' is not an image file, and others are"),
        (2, ["embed", "run", "a man", ""], "an input is empty"),
        (2, ["embed", "run", "0.png", "--data", "images.npy"], "choose images of a data set"),
        (2, ["embed", "run", "a man", "--out", "x.txt"], "must end in .npy"),
        (1, ["embed", "run", "gaps.txt"], "gaps.txt: line 2 is empty"),
        (1, ["embed", "run", "empty.txt"], "empty.txt: the file is empty"),
    ],
)
def test_bad_input_is_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], status: int, arguments: list[str], expected: str
) -> None:
    Path("gaps.txt").write_text("a man\n\na woman\n")
    Path("empty.txt").write_text("")
    before = sorted(Path().iterdir())
    assert expected in fails(capsys, status, *arguments)
    assert sorted(Path().iterdir()) == before
