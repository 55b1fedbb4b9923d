"""The page of `genmodels prefer --choose`, from a file and without a server."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser, Page

from genmodels.alignment.pairs import CHOICES, read_pairs
from genmodels.alignment.prefer import Request, make_pairs
from genmodels.autoregressive import Autoregressive, AutoregressiveConfig
from genmodels.nn.transformer import TransformerConfig


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    blocks = TransformerConfig(width=16, depth=1, heads=2)
    model = Autoregressive(AutoregressiveConfig(size=4, levels=4, transformer=blocks)).eval()
    folder = tmp_path_factory.mktemp("choose") / "pairs"
    make_pairs(model, Request(4), None, folder)
    return folder


def opened(browser: Browser, pairs: Path) -> tuple[Page, list[str]]:
    """Return the page, and what it has complained about or asked the network for."""
    tab, troubles = browser.new_page(), list[str]()
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    tab.on("request", lambda request: troubles.append(request.url) if request.url.startswith("http") else None)
    tab.goto((pairs / "index.html").as_uri())
    return tab, troubles


def test_choices_by_mouse_and_keys_are_those_that_training_reads(browser: Browser, pairs: Path) -> None:
    tab, troubles = opened(browser, pairs)
    widths = tab.locator("#pair img").evaluate_all("images => images.map(image => image.naturalWidth)")
    assert widths == [4, 4]
    assert tab.locator("#where").inner_text() == "pair 1 of 4, 0 chosen"
    tab.locator("#right").click()
    tab.keyboard.press("ArrowDown")  # skips the second
    tab.keyboard.press("ArrowLeft")
    assert tab.locator("#where").inner_text() == "pair 4 of 4, 2 chosen"
    tab.keyboard.press("ArrowUp")
    assert tab.locator("#left").get_attribute("aria-pressed") == "true"
    tab.reload()
    assert tab.locator("#where").inner_text() == "pair 1 of 4, 2 chosen"
    with tab.expect_download() as download:
        tab.locator("#save").click()
    assert download.value.suggested_filename == CHOICES
    download.value.save_as(pairs / CHOICES)
    assert (pairs / CHOICES).read_text() == "pair,choice\n0,right\n2,left\n"
    assert len(read_pairs(pairs)) == 2
    assert not troubles
    tab.close()
