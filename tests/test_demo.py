"""Page of the demo, made from briefly trained models."""

from __future__ import annotations

import html.parser
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

from genmodels import demo as demo_module
from genmodels.ae import AE, AEConfig
from genmodels.cli import main
from genmodels.data import Packed
from genmodels.data.batches import image_batches
from genmodels.data.toyfaces import draw
from genmodels.evaluation.report import Figure, Section, curves, page, tiles
from genmodels.vae import VAE, VAEConfig

BLOCKS = {"encoder_blocks": (1, 1), "decoder_blocks": (1, 1)}
SMALL: dict[str, Any] = {"size": 16, "patch": 2, "channels": (8, 16), "latent_dim": 8, **BLOCKS}


def toyfaces(n: int = 48) -> Packed:
    images, attributes = draw(0, np.arange(n), 16)
    return Packed(
        images=images,
        attributes=attributes,
        attribute_names=tuple(str(i) for i in range(attributes.shape[1])),
        names=[str(i) for i in range(n)],
        splits=np.arange(n).astype(np.uint8) // 32,
        manifest={"source": "toyfaces"},
    )


def fake_run(folder: Path, model: AE | VAE) -> None:
    """Make a run folder like that of the training loop."""
    model.calibrate(image_batches(toyfaces()))
    model.save_pretrained(folder)
    (folder / "samples").mkdir()
    lines = []
    for step in (1, 5, 20, 40):
        Image.new("RGB", (32, 32), (step, 0, 0)).save(folder / "samples" / f"step_{step:08d}.png")
        lines.append(
            json.dumps({"step": step, "elapsed": step / 2, "images": 8 * step, "loss": 1 / step, "mse": 1 / step})
        )
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


class Tags(html.parser.HTMLParser):
    """Parser that collects tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_demo_leaves_pictures_and_a_page_that_needs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "demo"
    asked = []

    def trained(family: str, folder: Path, minutes: float) -> None:
        asked.append((family, minutes))
        fake_run(folder / family, VAE(VAEConfig(**SMALL)) if family == "vae" else AE(AEConfig(**SMALL)))

    monkeypatch.setattr(demo_module, "_train", trained)
    monkeypatch.setattr(demo_module, "open_data", lambda *_, **__: toyfaces())
    assert main(["demo", "--out", str(out), "--minutes", "3"]) == 0
    assert asked == [("vae", 3.0), ("ae", 1.0)]

    assert Image.open(out / "grid.png").size == (2 + 8 * 18, 2 + 8 * 18)
    assert Image.open(out / "reconstructions.png").size == (2 + 8 * 18, 2 + 4 * 18)
    assert Image.open(out / "interpolation.png").size == (2 + 16 * 18, 2 + 3 * 18)
    with Image.open(out / "interpolation.gif") as animation:
        assert len(list(ImageSequence.Iterator(animation))) == 45
        assert animation.size == (6 * 16 + 5 * 2, 16)

    text = (out / "index.html").read_text()
    seen = Tags(text)
    sources = [value for _, attributes in seen.tags for name, value in attributes.items() if name in ("src", "href")]
    assert len([source for source in sources if source and source.startswith("data:image/")]) == 11
    assert all(source and source.startswith(("data:image/", "#")) for source in sources)
    assert "url(http" not in text
    assert [tag for tag, _ in seen.tags].count("svg") == 1
    for words in ("after 3 minutes", "320 images of 32", "After 40 steps", "PSNR", "at most", "none: no likelihood"):
        assert words in " ".join(seen.text.split())


def test_the_demo_replaces_only_a_demo_and_only_when_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_module, "open_data", lambda *_, **__: pytest.fail("no work before the folder is checked"))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("precious")
    assert main(["demo", "--out", str(mine), "--force"]) == 1
    assert "mine is not an empty folder: choose another --out" in capsys.readouterr().err
    earlier = tmp_path / "earlier"
    (earlier / "vae").mkdir(parents=True)
    (earlier / "index.html").touch()
    assert main(["demo", "--out", str(earlier)]) == 1
    assert "replace that demo with --force" in capsys.readouterr().err
    assert (earlier / "vae").is_dir()
    assert main(["demo", "--out", str(tmp_path / "new"), "--minutes", "0"]) == 1
    assert not (tmp_path / "new").exists()


def test_what_a_killed_demo_left_does_not_block_the_next(tmp_path: Path) -> None:
    left = ".index.0123abcd-9-0.partial.html"
    (tmp_path / left).touch()
    demo_module._prepare(tmp_path, force=False)
    (tmp_path / "vae").mkdir()
    demo_module._prepare(tmp_path, force=True)
    assert [path.name for path in tmp_path.iterdir()] == [left]
    (tmp_path / "vae").mkdir()
    (tmp_path / ".index.mine.partial.html").touch()
    with pytest.raises(ValueError, match="is not an empty folder"):
        demo_module._prepare(tmp_path, force=True)


def test_failed_training_ends_the_demo(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "other").touch()  # the recipe refuses the folder
    with pytest.raises(ValueError, match="training stopped with status 1"):
        demo_module._train("vae", tmp_path, 0.01)


def test_words_of_a_page_are_escaped_and_drawings_are_not() -> None:
    figure = Figure("a < b", svg="<svg><path/></svg>")
    text = page("<script>", "R&D", {"n": "<1"}, [Section("h", ["1 < 2"], [figure], [["a"], ["<b>"]], "x <y>")], "f")
    assert "<script>" not in text
    for words in ("&lt;script&gt;", "R&amp;D", "&lt;1", "1 &lt; 2", "a &lt; b", "&lt;b&gt;", "x &lt;y&gt;"):
        assert words in text
    assert "<svg><path/></svg>" in text


def test_curves_take_the_pages_colours() -> None:
    markup = curves({"one": ([0, 1], [2, 3]), "two": ([0, 1], [3, 2])}, "seconds", "loss")
    assert markup.startswith("<svg")
    assert "currentColor" in markup
    assert "#010203" not in markup
    assert "seconds" in markup


def test_tiles_have_see_through_gaps() -> None:
    import base64
    import io

    images = np.full((3, 4, 4, 3), 9, np.uint8)
    uri = tiles(images, 2)
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))
    assert sheet.shape == (10, 10, 4)
    assert (sheet[:4, :4] == (9, 9, 9, 255)).all()
    assert (sheet[4:6, :, 3] == 0).all()
    assert (sheet[6:, 6:, 3] == 0).all()
