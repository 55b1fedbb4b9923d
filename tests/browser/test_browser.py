"""Pages in a real browser: quiet, whole, sortable, fit for light, dark, paper and phone. Run by `make test-browser`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from evaluations import evaluation
from playwright.sync_api import Browser, Locator, Page

from genmodels.evaluation.compare import write_report
from genmodels.evaluation.report import Figure, Section, curves, page, tiles

PHONE, DESK = 390, 1280


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models, one without a likelihood, and a set of images with a long name that costs nothing."""
    cost = ("parameters", "sample-flops", "network-evaluations", "images-per-second", "memory")
    return write_report(
        [
            evaluation("runs/one", 0),
            evaluation("runs/two", 1, without=("bits-per-dim",)),
            evaluation("runs/three", 2),
            evaluation(f"/{'long/' * 30}{'x' * 90}.npy", 3, without=cost, kind="images", seed=None, training={}),
        ],
        tmp_path_factory.mktemp("report"),
        "genmodels compare runs/* " + "--option value " * 30,
    )


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One subject without pictures."""
    return write_report([evaluation("runs/one", pictures=False)], tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page like the demonstration's: all widths of figures, a drawing, a plain table, long code; nothing to sort."""
    picture = tiles(np.random.default_rng(0).integers(0, 256, (32, 64, 64, 3), np.uint8), 8)
    figures = [
        Figure("Wide.", "All of the column.", picture),
        Figure("Half.", "Half of it.", picture, width="half"),
        Figure("Third.", "A third.", picture, width="third"),
        Figure("Error.", svg=curves({"one": ([0, 1], [2, 1]), "two": ([0, 1], [1, 2])}, "seconds", "error")),
    ]
    table = [["model", "PSNR", "bits/dim"], ["one", "22.8 dB", "at most 6.4"], ["two", "21 dB", "none: no likelihood"]]
    sections = [Section("Pictures", ["Some words."], figures, table), Section("Next", code="genmodels " * 40)]
    path = tmp_path_factory.mktemp("demo") / "index.html"
    path.write_text(page("Faces", "A lead.", {"trained for": "90 s"}, sections, "The end."), encoding="utf-8")
    return path


@pytest.fixture
def show(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a page; at the end, nothing may have been said or asked for."""
    troubles: list[str] = []
    contexts = []

    def open_page(path: Path, width: int = DESK, scheme: str = "light", media: str = "screen") -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda said: troubles.append(said.text) if said.type in ("error", "warning") else None)
        tab.on("pageerror", lambda error: troubles.append(str(error)))
        tab.on(
            "request", lambda asked: None if asked.url.startswith(("file:", "data:")) else troubles.append(asked.url)
        )
        tab.emulate_media(media=media, color_scheme=scheme)
        tab.goto(path.as_uri())
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert not troubles


def first_cells(table: Locator) -> list[str]:
    return table.locator("tbody th").all_inner_texts()


def values(table: Locator, column: int) -> list[float | None]:
    """The numbers of a column as they stand in the page from top to bottom."""
    script = "(rows, column) => rows.map(row => parseFloat(row.cells[column].dataset.value))"
    found = table.locator("tbody tr").evaluate_all(script, column)
    return [None if value != value else value for value in found]


def head(table: Locator, words: str) -> tuple[Locator, int]:
    """The head of a column, and its place."""
    found = table.locator("thead th[aria-sort]", has_text=words)
    return found, found.evaluate("head => head.cellIndex")


@pytest.mark.parametrize("name", ["report", "alone", "demo"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("media", ["screen", "print"])
def test_pages_are_quiet_and_whole(
    name: str, scheme: str, media: str, show: Callable[..., Page], request: pytest.FixtureRequest
) -> None:
    tab = show(request.getfixturevalue(name), scheme=scheme, media=media)
    widths = tab.locator("img").evaluate_all("images => images.map(image => image.naturalWidth)")
    assert len(widths) == {"report": 4 + 10 + 16 + 8, "alone": 0, "demo": 3}[name]
    assert all(width > 0 for width in widths)
    # Ink on paper: dark only on a screen that asks for it.
    lightness = (
        "part => { const [r, g, b] = getComputedStyle(document.body)[part].match(/\\d+/g); return +r + +g + +b }"
    )
    paper, ink = (tab.evaluate(lightness, part) for part in ("backgroundColor", "color"))
    assert (paper < ink) == (scheme == "dark" and media == "screen")
    if media == "print":
        assert paper == 3 * 255


@pytest.mark.parametrize("name", ["report", "alone", "demo"])
@pytest.mark.parametrize("width", [PHONE, 768, DESK, 1920])
def test_pages_fit_their_window(
    name: str, width: int, show: Callable[..., Page], request: pytest.FixtureRequest
) -> None:
    tab = show(request.getfixturevalue(name), width)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    beyond = (
        "boxes => boxes.map(box => box.getBoundingClientRect()).filter(box => box.left < 0 || box.right > innerWidth)"
    )
    assert tab.locator("figure, .scroll, pre, p, h1, dl").evaluate_all(beyond) == []


def test_wide_tables_scroll_in_their_own_box(show: Callable[..., Page], report: Path) -> None:
    tab = show(report, PHONE)
    box = tab.locator(".numbers").first
    assert box.evaluate("box => box.scrollWidth > box.clientWidth")
    name = box.locator("tbody th").first
    before = name.bounding_box()
    box.evaluate("box => box.scrollLeft = 200")
    assert name.bounding_box() == before  # whose row it is stays in sight
    assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE


def test_a_printed_table_is_all_there(show: Callable[..., Page], report: Path) -> None:
    tab = show(report, 690, media="print")  # A4 within its margins
    for box in tab.locator(".scroll").all():
        assert box.evaluate("box => getComputedStyle(box).overflowX") == "visible"
        assert box.evaluate("box => box.scrollWidth <= box.clientWidth + 1"), box.inner_text()[:80]


def test_a_click_sorts_by_number_and_a_second_one_turns_it_round(show: Callable[..., Page], report: Path) -> None:
    table = show(report).locator(".numbers table").last
    speed, column = head(table, "images/s")
    given = first_cells(table)
    assert values(table, column) == [1000, 100, 10, None]  # as text, 10 and 100 and 1000 sort alike; 7.8 would not
    speed.locator("button").click()
    assert values(table, column) == [10, 100, 1000, None]
    assert first_cells(table) == [given[2], given[1], given[0], given[3]]
    assert speed.get_attribute("aria-sort") == "ascending"
    speed.locator("button").click()
    assert values(table, column) == [1000, 100, 10, None]
    assert speed.get_attribute("aria-sort") == "descending"

    parameters, column = head(table, "parameters")
    parameters.locator("button").click()
    found = values(table, column)
    assert found[:3] == sorted(evaluation("", i).scores["parameters"].value for i in range(3))
    assert found[3] is None
    assert (speed.get_attribute("aria-sort"), parameters.get_attribute("aria-sort")) == ("none", "ascending")


def test_what_is_missing_and_real_images_stay_last(show: Callable[..., Page], report: Path) -> None:
    table = show(report).locator(".numbers table").first
    bits, column = head(table, "bits/dim")
    known = sorted(evaluation("", i).scores["bits-per-dim"].value for i in (0, 2, 3))
    for expected in ([*known, None], [*known[::-1], None]):
        bits.locator("button").click()
        assert values(table, column) == expected
        assert first_cells(table)[-1] == "runs/two"
        assert table.locator("tr").last.locator("th").inner_text() == "real images, same n"


@pytest.mark.parametrize("key", ["Enter", " "])
def test_the_keyboard_sorts_too(key: str, show: Callable[..., Page], report: Path) -> None:
    tab = show(report)
    table = tab.locator(".numbers table").first
    distance, column = head(table, "FD")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.closest('th')?.cellIndex") == column
    tab.keyboard.press(key)
    expected = sorted(evaluation("", i).scores["fd-faces"].value for i in range(4))
    assert values(table, column) == expected
    tab.keyboard.press(key)
    assert values(table, column) == expected[::-1]
    assert distance.get_attribute("aria-sort") == "descending"


def test_one_table_is_sorted_at_a_time(show: Callable[..., Page], report: Path) -> None:
    tab = show(report)
    first, last = tab.locator(".numbers table").first, tab.locator(".numbers table").last
    before = first_cells(last)
    head(first, "KD")[0].locator("button").click()
    assert first_cells(last) == before


def test_without_scripts_it_is_still_a_table(browser: Browser, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(report.as_uri())
    assert tab.locator(".numbers").first.locator("tbody tr").count() == 4
    context.close()
