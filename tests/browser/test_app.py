"""The page of `genmodels app` in a real browser: tabs, brush, slider, errors, cancel, keyboard."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import httpx
import numpy as np
import pytest
from app_models import empty_png, save_models
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from genmodels.app import work
from genmodels.app.server import running
from genmodels.app.work import Served
from genmodels.cli.app import served_model

PHONE, DESK = 390, 1440
# Tabs are measured out of sight.
CONTROLS = ":is(button, input, textarea):visible:not(.visually-hidden *)"
TIMEOUT = 120_000
"""Milliseconds that something on the page may take on a busy machine."""
TABS = {
    "vae": ["Sample", "Variations", "Reconstruct", "Interpolate", "Morph", "Directions"],
    "unet": ["Sample", "Variations", "Interpolate", "Morph", "Edit", "Inpaint", "Trajectory"],
    "text": ["Sample", "Variations", "Interpolate", "Morph", "Edit", "Inpaint", "Trajectory"],
    "clip": ["Retrieve", "Captions"],
    "llava": ["Ask"],
}


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Served]]:
    """Five small models that can do different things."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("genmodels.cli.directions.ENOUGH", 500)
        yield [served_model(name) for name in save_models(Path())]


@pytest.fixture(scope="session")
def address(served: list[Served]) -> Iterator[str]:
    with running(served, port=7960) as url:
        yield url


class Visit:
    """A visitor's tab of the browser, and what went wrong in it."""

    def __init__(self, browser: Browser, address: str, width: int = DESK, scheme: str = "light"):
        self.address, self.troubles = address, []
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True
        )
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(TIMEOUT)
        self.page.on("console", lambda said: self.troubles.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on(
            "request",
            lambda asked: (
                None if asked.url.startswith((address, "data:", "blob:")) else self.troubles.append(asked.url)
            ),
        )

    def open(self, model: str = "", tab: str | None = None) -> Page:
        """Open the part of a model, and one of its tabs."""
        self.page.goto(self.address + model)
        self.page.get_by_role("tab").first.or_(self.page.get_by_role("button", name="Compare")).first.wait_for()
        if tab is not None:
            self.tab(tab)
        return self.page

    def tab(self, name: str) -> None:
        """Open a tab. Those that do not fit are in the menu behind "..."."""
        found = self.page.get_by_role("tab", name=name, exact=True).filter(visible=True)
        if not found.count():
            self.page.locator(".overflow-menu > button").first.click()
            found = self.page.locator(".overflow-dropdown button", has_text=name)
        found.first.click()
        self.button(name).wait_for()

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True).filter(visible=True)

    def upload(self, path: Path) -> None:
        """Give a file as the image of the open tab."""
        tab = self.page.get_by_role("tabpanel").filter(visible=True)
        tab.locator("input[type=file]").first.set_input_files(path)
        tab.get_by_text(path.stem).first.wait_for()

    def images(self) -> Locator:
        """Images in view of the results."""
        return self.page.locator(".faces img, .small img").filter(visible=True)

    def command(self) -> str:
        box = self.page.get_by_label("The same on the command line").filter(visible=True)
        expect(box.first).not_to_have_value("", timeout=TIMEOUT)
        return box.first.input_value()

    def compute(self, name: str) -> str:
        """Click the button of a tab and wait for its result; return the command."""
        self.button(name).click()
        return self.command()

    def pixels(self, place: int) -> np.ndarray:
        """Pixels of an image of the results."""
        source = self.images().nth(place).get_attribute("src")
        with urlopen(source) as file:
            return np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB")).astype(int)


@pytest.fixture
def visit(browser: Browser, address: str, request: pytest.FixtureRequest) -> Iterator[Visit]:
    visit = Visit(browser, address, **getattr(request, "param", {}))
    yield visit
    visit.context.close()
    assert not visit.troubles


@pytest.mark.parametrize("model", list(TABS))
def test_every_tab_shows_images_and_their_command(model: str, visit: Visit, tmp_path: Path) -> None:
    page = visit.open("" if model == "vae" else model)
    assert page.get_by_role("tab").all_inner_texts() == TABS[model]
    for title in TABS[model]:
        visit.tab(title)
        if title in ("Captions", "Ask"):  # the model has no samples to describe
            Image.new("RGB", (40, 30), "teal").save(tmp_path / "face.png")
            visit.upload(tmp_path / "face.png")
        command = visit.compute(title)
        assert command.splitlines()[-1].split()[:3:2] == ["genmodels", model], title
        expect(visit.images().first).to_be_visible(timeout=TIMEOUT)  # it loads after the command is shown
        assert len(np.unique(visit.pixels(0))) > 1, title


def test_a_download_is_what_the_command_line_says(visit: Visit, served: list[Served], tmp_path: Path) -> None:
    page = visit.open()
    page.get_by_label("Seed").first.fill("7")
    assert visit.compute("Sample") == "genmodels sample vae --n 16 --seed 7 --out samples.png"
    expected = work.sample(served[0], 16, 7, {}, {}).images
    for name, kind in (("Download .npy", ".npy"), ("Download PNG", ".png")):
        with page.expect_download() as download:
            page.get_by_text(name).first.click()
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        assert path.name == f"samples{kind}"
    np.testing.assert_array_equal(np.load(tmp_path / "samples.npy"), expected)
    np.testing.assert_array_equal(visit.pixels(3), expected[3])
    assert "seed 7 #3" in page.locator(".faces").first.inner_text()


def test_a_slider_moves_along_an_interpolation(visit: Visit, served: list[Served]) -> None:
    page = visit.open("", "Interpolate")
    visit.compute("Interpolate")
    expected = work.interpolate(served[0], 1, 2, 16, {}).images
    frame = page.locator(".small img").filter(visible=True)
    middle = frame.get_attribute("src")
    handle = page.get_by_label("range slider for Position").filter(visible=True)
    handle.focus()
    page.keyboard.press("End")
    expect(frame).not_to_have_attribute("src", str(middle), timeout=TIMEOUT)
    np.testing.assert_array_equal(visit.pixels(0), expected[-1])


def test_two_prompts_are_the_ends_of_an_interpolation(visit: Visit, served: list[Served]) -> None:
    page = visit.open("text", "Interpolate")
    prompts = ["a man", "a woman with glasses"]
    for place, prompt in zip(("First", "Second"), prompts, strict=True):
        page.get_by_label(f"{place} prompt").fill(prompt)
    expected = work.interpolate(served[2], 1, 2, 16, {}, prompts)
    assert visit.compute("Interpolate") == expected.command
    assert "--seeds 1 --prompts 'a man' 'a woman with glasses' --frames 16" in expected.command
    np.testing.assert_array_equal(visit.pixels(16), expected.images[-1])


def test_a_brush_stroke_is_completed(visit: Visit, served: list[Served], tmp_path: Path) -> None:
    page = visit.open("unet", "Inpaint")
    canvas = page.locator("canvas").filter(visible=True).first
    canvas.wait_for()
    page.wait_for_timeout(3000)  # the image is drawn on it
    box = canvas.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 50, y)
    page.mouse.down()
    for step in range(11):
        page.mouse.move(x - 50 + 10 * step, y)
    page.mouse.up()
    command = visit.compute("Inpaint")
    assert "--mask mask.png" in command
    start, known, first, second = (visit.pixels(place) for place in range(4))
    unknown = (known == 127).all(2)
    assert 4 <= unknown.sum() <= 128 and unknown[8].sum() > unknown[0].sum()  # a stroke through the middle
    np.testing.assert_array_equal(first[~unknown], start[~unknown])
    assert abs(first - second)[unknown].max() > 0
    with page.expect_download() as download:
        page.get_by_text("Download mask").first.click()
    download.value.save_as(tmp_path / "mask.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "mask.png"))[:, :, 0] == 255, unknown)


def test_an_error_is_a_short_message(visit: Visit, tmp_path: Path) -> None:
    page = visit.open()
    (tmp_path / "face.png").write_text("<b>not a picture</b>")
    (tmp_path / "huge.png").write_bytes(empty_png(30_000))
    for tab, name, message in (
        ("Reconstruct", "face.png", "face.png: not an image of a known format"),
        ("Variations", "huge.png", "huge.png: decompression bomb: it has more than 89,478,485 pixels"),
    ):
        visit.tab(tab)
        visit.upload(tmp_path / name)
        visit.button(tab).click()
        page.get_by_text(message).wait_for()
    assert "Traceback" not in page.locator("body").inner_text()
    assert str(tmp_path) not in page.locator("body").inner_text()


def test_a_deleted_model_is_reported_and_goes_on(visit: Visit, served: list[Served]) -> None:
    page, folder = visit.open(), served[0].folder
    away = folder.rename(folder.with_name("away"))
    try:
        assert visit.compute("Sample") == "genmodels sample vae --n 16 --seed 0 --out samples.png"
        page.get_by_text("vae was deleted. This page still has it in memory, commands do not.").wait_for()
    finally:
        away.rename(folder)
    expect(visit.images()).to_have_count(16, timeout=TIMEOUT)


def test_a_job_is_cancelled_and_the_next_one_runs(visit: Visit) -> None:
    page = visit.open("unet", "Trajectory")
    page.get_by_label("number input for Steps").filter(visible=True).first.fill("100")
    page.get_by_label("number input for Number of images").filter(visible=True).first.fill("8")
    visit.button("Trajectory").click()
    page.get_by_text("network blocks").first.wait_for()
    visit.button("Cancel").click()
    visit.tab("Sample")
    assert "sample unet" in visit.compute("Sample")
    visit.tab("Trajectory")
    assert visit.images().count() == 0


def test_two_tabs_at_once_get_their_own_images(browser: Browser, address: str, served: list[Served]) -> None:
    visits = [Visit(browser, address) for _ in range(2)]
    for seed, each in enumerate(visits):
        each.open().get_by_label("Seed").first.fill(str(seed))
    for each in visits:
        each.button("Sample").click()
    for seed, each in enumerate(visits):
        assert f"--seed {seed} " in each.command()
        np.testing.assert_array_equal(each.pixels(2), work.sample(served[0], 16, seed, {}, {}).images[2])
        each.context.close()
        assert not each.troubles


@pytest.mark.parametrize(
    "visit", [{"width": w, "scheme": s} for w in (PHONE, DESK) for s in ("light", "dark")], indirect=True
)
def test_the_page_fits_and_follows_the_system(visit: Visit) -> None:
    for part in ("", "unet", "side-by-side"):
        page = visit.open(part)
        width = page.viewport_size["width"]  # type: ignore[index]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        beyond = "boxes => boxes.filter(box => box.getBoundingClientRect().right > innerWidth + 1).length"
        assert page.locator(CONTROLS).evaluate_all(beyond) == 0
    shade = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).reduce((a, b) => +a + +b, 0)"
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert (page.evaluate(shade) < 3 * 128) == dark


def test_the_keyboard_is_enough(visit: Visit) -> None:
    page = visit.open()
    page.get_by_role("tab", name="Sample", exact=True).focus()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.innerText") == "Sample":
            break
    page.keyboard.press("Enter")
    assert "--seed 0" in visit.command()
    unnamed = "parts => parts.filter(part => !part.labels?.length && !part.ariaLabel && !part.title).length"
    assert page.locator("input:visible, textarea:visible").evaluate_all(unnamed) == 0


def test_two_models_side_by_side(visit: Visit, served: list[Served]) -> None:
    page = visit.open("side-by-side")
    page.get_by_label("Seed").first.fill("5")
    visit.button("Compare").click()
    boxes = page.get_by_label("The same on the command line")
    expect(boxes.nth(1)).not_to_have_value("", timeout=TIMEOUT)
    commands = [boxes.nth(place).input_value() for place in range(2)]
    assert commands == [f"genmodels sample {name} --n 8 --seed 5 --out samples.png" for name in ("vae", "unet")]
    for place, model in ((0, 0), (8, 1)):
        np.testing.assert_array_equal(visit.pixels(place), work.sample(served[model], 8, 5, {}, {}).images[0])
    page.get_by_text("Condition of both").click()
    page.get_by_label("Prompt").fill("a man")
    visit.button("Compare").click()
    page.get_by_text("vae: a prompt was given, and this model was trained without text").wait_for()


def test_uploads_are_limited(address: str) -> None:
    content = {"files": ("face.png", bytes((20 << 20) + 1))}
    assert httpx.post(f"{address}gradio_api/upload", files=content, timeout=TIMEOUT / 1000).status_code == 413
