"""The page of `genmodels export --to web`: offline in a real browser, equal to torch. Run by `make test-browser`."""

from __future__ import annotations

import functools
import http.server
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

import genmodels
from genmodels.conditions import Condition, ConditionConfig
from genmodels.dit import DiT, DiTConfig
from genmodels.exchange.web import export_to_web
from genmodels.nn.transformer import TransformerConfig
from genmodels.pictures import to_uint8
from genmodels.types import Noise

PHONE, DESK = 390, 1440
MODEL = "toyfaces/vae"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Plain files, as `python -m http.server` serves them, without a log."""

    def log_message(self, format: str, *values: object) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a model of the package, with onnxruntime-web from the cache or npm."""
    out = tmp_path_factory.mktemp("web") / "page"
    export_to_web(genmodels.load(MODEL), out)
    return out


@contextmanager
def served(folder: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with served(folder) as place:
        yield place


def is_trouble(said: ConsoleMessage) -> bool:
    """Whether the page caused a message. That of many readings of the canvas is caused by the tests."""
    return said.type in ("error", "warning") and "willReadFrequently" not in said.text


@pytest.fixture
def show(browser: Browser, address: str) -> Iterator[Callable[..., Page]]:
    """Opens the page without any other host; at the end, nothing may have been said or asked for."""
    troubles: list[str] = []
    contexts = []

    def open_page(width: int = DESK, scheme: str = "light", ready: bool = True) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)

        def only_here(route) -> None:
            if route.request.url.startswith(address):
                route.continue_()
            else:
                troubles.append(route.request.url)
                route.abort()

        context.route(re.compile("^https?:"), only_here)
        tab = context.new_page()
        tab.on("console", lambda said: troubles.append(said.text) if is_trouble(said) else None)
        tab.on("pageerror", lambda error: troubles.append(str(error)))
        tab.goto(address)
        if ready:
            tab.evaluate("genmodels.ready")
            tab.wait_for_selector("#strip canvas")
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert not troubles


def picture(tab: Page) -> list[int]:
    """Pixels of the canvas, once the face of the controls is drawn."""
    tab.wait_for_function("!genmodels.drawing")
    script = "c => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
    return tab.locator("#face").evaluate(script)


def set_slider(tab: Page, name: str, value: float) -> None:
    script = "(input, value) => { input.value = value; input.dispatchEvent(new Event('input', { bubbles: true })) }"
    tab.get_by_label(name, exact=True).evaluate(script, value)


def test_faces_equal_those_of_torch(show: Callable[..., Page]) -> None:
    model = genmodels.load(MODEL).float()
    with torch.no_grad():
        latents = model.draw_latents(Noise.for_images(0, range(4)), model.options())
        expected = to_uint8(model.from_latents(latents))
    script = "async (values) => Array.from(await genmodels.draw(Float32Array.from(values), 4))"
    pixels = np.reshape(show().evaluate(script, latents.flatten().tolist()), expected.shape)
    assert np.abs(pixels - expected).max() <= 1
    assert (pixels == expected).mean() > 0.99
    assert expected.std() > 20


def test_controls_change_the_face(show: Callable[..., Page]) -> None:
    tab = show()
    first = picture(tab)
    tab.get_by_label("Seed", exact=True).focus()
    tab.keyboard.press("ArrowRight")
    second = picture(tab)
    assert second != first
    tab.keyboard.press("ArrowLeft")
    assert picture(tab) == first  # a seed is always the same face
    set_slider(tab, "Weight", 1)
    assert picture(tab) == pytest.approx(second, abs=1)
    set_slider(tab, "Weight", 0)
    for name, value in (("Temperature", 0.5), ("Direction 1", 2), ("Direction 4", -2)):
        before = picture(tab)
        set_slider(tab, name, value)
        assert picture(tab) != before, name
    tab.locator("#strip button").nth(2).click()
    assert tab.get_by_label("Seed", exact=True).input_value() == "3"
    with tab.expect_download() as download:
        tab.get_by_text("Save as PNG").click()
    assert download.value.path().read_bytes().startswith(b"\x89PNG")


def test_latent_walk_shows_faces_per_second(show: Callable[..., Page]) -> None:
    tab = show()
    tab.get_by_role("button", name="Walk").click()
    tab.wait_for_function("document.getElementById('seed').value === '1'", timeout=60_000)
    seen = {tuple(tab.locator("#face").evaluate("c => [...c.getContext('2d').getImageData(20, 20, 9, 9).data]"))}
    tab.wait_for_timeout(500)
    seen.add(tuple(tab.locator("#face").evaluate("c => [...c.getContext('2d').getImageData(20, 20, 9, 9).data]")))
    assert len(seen) == 2
    speed = re.fullmatch(r"([\d.]+) faces per second", tab.locator("#speed").inner_text())
    assert speed is not None and float(speed[1]) > 0.5
    print(f"\n{speed[0]} ({MODEL}, one thread of WebAssembly)")
    tab.get_by_role("button", name="Stop").click()
    tab.wait_for_selector("#walk[aria-pressed=false]")
    assert 0 <= float(tab.get_by_label("Weight", exact=True).input_value()) <= 1


@pytest.mark.parametrize(("width", "scheme"), [(PHONE, "dark"), (DESK, "light")])
def test_page_fits_and_is_labelled(width: int, scheme: str, show: Callable[..., Page]) -> None:
    tab = show(width, scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    lightness = "part => getComputedStyle(document.body)[part].match(/\\d+/g).slice(0, 3).map(Number)"
    paper, ink = (sum(tab.evaluate(lightness, part)) for part in ("backgroundColor", "color"))
    assert (paper < ink) == (scheme == "dark")
    assert tab.locator("input").evaluate_all("inputs => inputs.every(input => input.labels.length === 1)")
    assert tab.locator("#strip button").evaluate_all("all => all.every(one => one.ariaLabel)")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.tagName") in ("BUTTON", "A", "INPUT")


def mean_flow(class_names: tuple[str, ...] = ("cat", "dog")) -> DiT:
    """A conditional mean flow whose weights are all random."""
    torch.manual_seed(0)
    transformer = TransformerConfig(width=16, depth=1, heads=2)
    condition = ConditionConfig(attributes=("Smiling", "Wearing_Hat"), classes=2, class_names=class_names)
    config = DiTConfig(size=8, patch=4, transformer=transformer, process="meanflow", condition=condition)
    model = DiT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    return model


def test_a_conditional_model_of_noise(browser: Browser, tmp_path: Path) -> None:
    model = mean_flow()
    export_to_web(model, tmp_path / "page", {"steps": 1})
    noise = Noise.for_images(0, range(2)).normal(3, 8, 8)
    given = Condition(torch.tensor([[0.0, 1.0]] * 2), torch.tensor([1, 1]))
    with torch.no_grad():
        expected = to_uint8(model.generate_from(noise, given, model.options(steps=1)))
    with served(tmp_path / "page") as address, browser.new_context() as context:
        tab = context.new_page()
        tab.goto(address)
        tab.evaluate("genmodels.ready")
        assert not tab.locator("#directions").is_visible()
        script = "async (values) => Array.from(await genmodels.draw(Float32Array.from(values), 2))"
        plain = tab.evaluate(script, noise.flatten().tolist())
        before = picture(tab)
        tab.get_by_label("Wearing Hat").select_option("yes")
        tab.get_by_label("Class").select_option("dog")
        assert picture(tab) != before
        pixels = np.reshape(tab.evaluate(script, noise.flatten().tolist()), expected.shape)
    assert np.abs(pixels - expected).max() <= 1
    assert np.abs(np.reshape(plain, expected.shape) - expected).max() > 10


FAIL_FOR_EIGHT = """() => {
    const sessions = ort.InferenceSession.prototype, run = sessions.run;
    sessions.run = function (feeds) {
        if (feeds.normal.dims[0] === 8) throw new Error("no room for eight");
        return run.call(this, feeds);
    };
}"""
"""The large face is drawn as one image, and the strip as eight."""


def test_an_unnamed_class_is_a_number_and_errors_are_shown(browser: Browser, tmp_path: Path) -> None:
    export_to_web(mean_flow(class_names=()), tmp_path / "page", {"steps": 1})
    with served(tmp_path / "page") as address, browser.new_context() as context:
        tab = context.new_page()
        tab.goto(address)
        tab.evaluate("genmodels.ready")
        field, status, before = tab.get_by_label("Class"), tab.locator("#status"), picture(tab)
        field.fill("1")
        assert picture(tab) != before
        field.fill("2")
        expect(status).to_have_text("Error: Class: a number from 0 to 1, or empty for any")
        field.fill("")
        assert picture(tab) == before
        expect(status).to_have_text("")

        # At temperature 0 all faces are the same, also those of a walk that has begun.
        face, weight = "document.getElementById('face').toDataURL()", tab.get_by_label("Weight", exact=True)
        tab.get_by_role("button", name="Walk").click()
        set_slider(tab, "Temperature", 0)
        tab.wait_for_timeout(300)
        still, place = tab.evaluate(face), weight.input_value()
        tab.wait_for_timeout(500)
        assert tab.evaluate(face) == still and weight.input_value() != place
        set_slider(tab, "Temperature", 1)
        tab.wait_for_timeout(300)
        assert tab.evaluate(face) != still
        tab.get_by_role("button", name="Stop").click()
        tab.wait_for_selector("#walk[aria-pressed=false]")

        tab.evaluate(FAIL_FOR_EIGHT)
        field.fill("0")
        expect(status).to_have_text("Error: no room for eight")


def test_a_missing_file_is_named(browser: Browser, address: str) -> None:
    with browser.new_context() as context:
        tab = context.new_page()
        tab.route("**/model.json", lambda route: route.fulfill(status=404))
        tab.goto(address)
        expect(tab.locator("#status")).to_contain_text("model.json is missing")
