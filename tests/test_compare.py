"""Reports on several evaluations: the parsed page, numbers, figures, and input refused."""

from __future__ import annotations

import base64
import csv
import dataclasses
import html.parser
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from evaluations import FEATURES, MACHINE, evaluation
from PIL import Image

from genmodels.evaluation.columns import Column, amount, columns, numbers, with_training
from genmodels.evaluation.compare import with_unique_names, write_report
from genmodels.evaluation.figures import file_names, plot, points, samples_shown, trade_offs
from genmodels.evaluation.protocol import Protocol
from genmodels.evaluation.report import drawn_in
from genmodels.evaluation.results import Evaluation, Score, Subject
from genmodels.saving import from_dict

VOID = {"meta", "link", "img", "br", "hr", "input", "wbr"}


class Element:
    """HTML element: tag, attributes, text and children."""

    def __init__(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.tag = tag
        self.attributes = attributes
        self.parts: list[Element | str] = []

    @property
    def text(self) -> str:
        words = "".join(part if isinstance(part, str) else f" {part.text} " for part in self.parts if part)
        return " ".join(words.split())

    def all(self, *tags: str) -> list[Element]:
        """Return all descendants with one of the tags, or all descendants, in document order."""
        found = []
        for part in self.parts:
            if isinstance(part, Element):
                found += [part] if not tags or part.tag in tags else []
                found += part.all(*tags)
        return found


class Page(html.parser.HTMLParser):
    """Parser that builds the tree and fails if tags are not properly nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]
        self.feed(text)
        assert len(self.open) == 1, [element.tag for element in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self.open[-1].parts.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].parts.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag, tag

    def handle_data(self, data: str) -> None:
        self.open[-1].parts.append(data)


def tables_of(page: Element) -> list[Element]:
    return [e for box in page.all("div") if "numbers" in str(box.attributes.get("class")) for e in box.all("table")]


def section(page: Element, heading: str) -> Element:
    return next(part for part in page.all("section") if part.all("h2")[0].text == heading)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a report on three models, one without likelihood, and images with a hostile name."""
    images = dict(kind="images", weights="", seed=None, training={})
    cost = ("parameters", "sample-flops", "network-evaluations", "images-per-second", "memory")
    evaluations = [
        evaluation("runs/one", 0),
        evaluation("runs/two", 1, without=("bits-per-dim",), options={"steps": 20}),
        evaluation("runs/" + "long/" * 20 + "path", 2),
        evaluation('<script>alert("A&B")</script>', 3, without=("psnr", "ssim", *cost), **images),
    ]
    command = "genmodels compare runs/* --out 'a < b'"
    return write_report(evaluations, tmp_path_factory.mktemp("report") / "new" / "out", command).parent


@pytest.fixture(scope="module")
def page(report: Path) -> Element:
    return Page((report / "index.html").read_text(encoding="utf-8")).root


@pytest.fixture(scope="module")
def two_machines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a report on two models that were measured on different machines."""
    both = [evaluation("one", 0), evaluation("two", 1, machine="another")]
    return write_report(both, tmp_path_factory.mktemp("machines") / "out").parent


# ---- the page ----


def test_the_page_needs_nothing_from_elsewhere(report: Path, page: Element) -> None:
    for element in page.all():
        for name, value in element.attributes.items():
            if name in ("src", "href", "xlink:href", "data", "srcset", "action", "poster"):
                assert value
                assert value.startswith(("data:image/png;base64,", "#")), value[:60]
    assert not page.all("link", "iframe", "object", "embed", "base", "form")
    text = (report / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"url\(\s*[\"']?(?!#)|@import|fetch\(|XMLHttp", text)
    assert len(text) < 3_000_000


def test_every_picture_can_be_decoded_and_has_a_text(page: Element) -> None:
    pictures = page.all("img")
    # Samples; originals and four models, in two parts; two rows each of the least and the most realistic samples;
    # pairs of neighbours.
    assert len(pictures) == 4 + 2 * 5 + 4 * 4 + 4 * 2
    for picture in pictures:
        assert picture.attributes["alt"]
        data = str(picture.attributes["src"]).removeprefix("data:image/png;base64,")
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
            image.load()
            assert min(image.size) >= 32
    samples = section(page, "Samples").all("img")[0]
    with Image.open(io.BytesIO(base64.b64decode(str(samples.attributes["src"]).partition(",")[2]))) as image:
        assert image.size == (16 * 34 - 2, 4 * 34 - 2)  # 64 of the 70, each at its own size
        first = np.asarray(image)[:32, :32, :3]
    assert (first == evaluation("runs/one", 0).pictures["samples"][0]).all()


def test_one_row_per_subject_and_the_floor_last(page: Element) -> None:
    tables = tables_of(page)
    assert len(tables) == 2  # five of samples, two of reconstruction and one of likelihood; six of cost
    for table in tables:
        rows = [row.all("th")[0].text.replace("/ ", "/") for row in table.all("tbody")[0].all("tr")]
        assert rows == ["runs/one", "runs/two", "runs/" + "long/" * 20 + "path", '<script>alert("A&B")</script>']
        head = table.all("thead")[0].all("tr")[1].all("td", "th")
        assert all(len(row.all("td", "th")) == len(head) for row in table.all("tbody", "tfoot")[0].all("tr"))
        groups = table.all("thead")[0].all("tr")[0].all("th")
        assert sum(int(str(group.attributes["colspan"])) for group in groups) == len(head) - 1
    assert [group.text for group in tables[0].all("tr")[0].all("th")] == ["Samples", "Reconstruction", "Likelihood"]
    [floor] = tables[0].all("tfoot")[0].all("tr")
    assert [cell.text for cell in floor.all("th", "td")][:6] == [
        *("real images, same n", "3.250 *", "-0.0001 *", "0.7500 *", "0.5000 *"),
        "\N{EN DASH}",
    ]
    assert not tables[1].all("tfoot")  # a cost has no such number


def test_heads_are_buttons_that_say_what_they_mean(page: Element) -> None:
    heads = [head for table in tables_of(page) for head in table.all("th") if head.attributes.get("scope") == "col"]
    assert [head.text for head in heads] == [
        *("FD \N{DOWNWARDS ARROW} faces", "KD \N{DOWNWARDS ARROW} faces", "precision \N{UPWARDS ARROW} faces"),
        *("recall \N{UPWARDS ARROW} faces", "nearest train faces", "PSNR \N{UPWARDS ARROW} dB"),
        *("SSIM \N{UPWARDS ARROW}", "bits/dim \N{DOWNWARDS ARROW}", "parameters \N{DOWNWARDS ARROW}"),
        *("sample FLOPs \N{DOWNWARDS ARROW} per image", "network evaluations \N{DOWNWARDS ARROW}"),
        *("images/s \N{UPWARDS ARROW}", "memory \N{DOWNWARDS ARROW}", "training minutes"),
    ]
    assert all(head.attributes["aria-sort"] == "none" for head in heads)
    assert all(len(head.all("button")) == 1 for head in heads)
    assert heads[0].all("button")[0].attributes["title"] == "Frechet distance <exact>"
    assert heads[0].all("span")[0].attributes["aria-label"] == "lower is better"


def test_the_best_is_bold_and_what_is_missing_says_why(page: Element) -> None:
    fd = [evaluation("", seed).scores["fd-faces"].value for seed in range(4)]
    rows = tables_of(page)[0].all("tbody")[0].all("tr")
    cells = [row.all("td")[0] for row in rows]
    assert [float(str(cell.attributes["data-value"])) for cell in cells] == fd
    assert [bool(cell.all("b")) for cell in cells] == [value == min(fd) for value in fd]
    precision = [evaluation("", seed).scores["precision-faces"].value for seed in range(4)]
    assert [bool(row.all("td")[2].all("b")) for row in rows] == [value == max(precision) for value in precision]
    assert not any(row.all("td")[4].all("b") for row in rows)  # no ratio to the nearest neighbour is better
    missing = rows[1].all("td")[7]
    assert missing.text == "\N{EN DASH}"
    assert missing.attributes == {"title": "runs/two has no bits-per-dim"}
    assert (
        tables_of(page)[1].all("tbody")[0].all("tr")[3].all("td")[-1].attributes["title"]
        == "not known for this subject"
    )
    absent = section(page, "Not measured").text
    assert "bits-per-dim runs/two runs/two has no bits-per-dim" in absent


def test_an_asterisk_for_fewer_than_2048_images(page: Element, tmp_path: Path) -> None:
    table = tables_of(page)[0]
    for row in table.all("tbody")[0].all("tr"):
        starred = [bool(cell.all("span")) for cell in row.all("td")]
        assert starred == [True] * 5 + [False] * 3  # PSNR is a mean over images, and no distance between sets
    [note] = [p.text for p in section(page, "Results").all("p") if p.attributes.get("class") == "note"]
    assert note.startswith("* Fewer than 2,048 images")

    many = evaluation("one", n=2048)
    protocol = dataclasses.replace(many.scores["fd-faces"].protocol, n_reference=10_000)
    scores = {"fd-faces": dataclasses.replace(many.scores["fd-faces"], protocol=protocol)}
    large = write_report([dataclasses.replace(many, scores=scores)], tmp_path / "out")
    assert "Fewer than" not in large.read_text()
    assert 'class="star"' not in large.read_text()


def test_words_are_escaped(report: Path, page: Element) -> None:
    text = (report / "index.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(&#34;A&amp;B&#34;)&lt;" in text
    assert len(page.all("script")) == 1
    assert page.all("pre")[0].text == "genmodels compare runs/* --out 'a < b'"


def test_the_page_tells_how_the_numbers_came_to_be(page: Element) -> None:
    headings = [heading.text for heading in page.all("h2")]
    assert headings == [
        *("Results", "Samples", "Reconstructions", "Single samples", "Nearest training images", "Quality and cost"),
        *("Protocol", "Definitions of the metrics", "Not measured", "Subjects", "Versions", "Command"),
    ]
    protocol = [[cell.text for cell in row.all("th", "td")] for row in section(page, "Protocol").all("tr")]
    rows = dict(protocol)
    assert rows["images measured"].startswith("2,000 (fd-faces, kd-faces, precision-faces, recall-faces, nearest-train")
    assert rows["images measured"].endswith("; 64 (images-per-second, memory)")
    assert rows["feature extractor"] == "faces"
    assert rows["machine"] == MACHINE
    # train, attributes, classes, text, alphabet and version are not set here
    assert len(protocol) == 1 + len(dataclasses.fields(Protocol)) - 6
    assert "runs/two tiny EMA 0 steps 20 20 minutes" in section(page, "Subjects").text
    assert "all 0.1.0+abcdef01 2.14.1 cpu 2026-11-23" in section(page, "Versions").text
    lowest = min(range(4), key=lambda seed: evaluation("", seed).scores["fd-faces"].value)
    assert lowest == 3
    lead = next(p.text for p in page.all("p") if p.attributes.get("class") == "lead")
    assert "2,000 images of each compared with 2,044 real images of toyfaces, split valid, 32 pixels." in lead
    assert '<script>alert("A&B")</script> has the lowest FD (faces)' in lead


def test_the_page_says_what_our_extractor_cannot_see_where_it_judges(page: Element, tmp_path: Path) -> None:
    assert "does not penalise faces that are sharp but malformed" in section(page, "Results").text
    judged = ("fd-faces", "kd-faces", "precision-faces", "recall-faces", "nearest-train-faces")
    without = evaluation(without=judged)
    root = Page(write_report([without, without], tmp_path).read_text()).root
    assert "Arrows show" in section(root, "Results").text and "malformed" not in section(root, "Results").text


def test_the_page_says_that_samples_are_the_best_of_several(page: Element, tmp_path: Path) -> None:
    assert "not selected" in section(page, "Samples").text
    chosen = evaluation(candidates=4, best_by="realism (faces)")
    root = Page(write_report([chosen], tmp_path).read_text()).root
    assert "samples of seed 0, each the best of 4 by realism (faces)." in section(root, "Samples").text
    assert "best of 4 by realism (faces)" in section(root, "Subjects").text
    assert "not selected" not in root.text
    rows = section(root, "Single samples").text
    assert "least realistic, 1 to 8" in rows and "most realistic, 9 to 16" in rows


def test_one_subject_without_pictures(tmp_path: Path) -> None:
    text = write_report([evaluation("runs/a&b", pictures=False)], tmp_path).read_text()
    root = Page(text).root
    assert root.all("h1")[0].text == "runs/a&b"
    assert not root.all("img", "svg", "b")  # nothing to choose from, nothing to draw
    assert len(tables_of(root)[0].all("tbody")[0].all("tr")) == 1
    assert list((tmp_path / "figures").iterdir()) == []


def test_nothing_measured_is_a_page_too(tmp_path: Path) -> None:
    bare = Evaluation(Subject("x", "images"), {}, {"fd-faces": "the network is not there"}, {})
    root = Page(write_report([bare, bare], tmp_path).read_text()).root
    assert "Nothing was measured." in section(root, "Results").text
    assert "the network is not there" in section(root, "Not measured").text


# ---- the numbers ----


def test_json_holds_everything(report: Path) -> None:
    whole = json.loads((report / "results.json").read_text())
    assert set(whole) == {"format", "evaluations", "files"}
    written = {path.relative_to(report).as_posix() for path in report.rglob("*") if path.is_file()}
    assert set(whole["files"]) == written - {"results.json"}
    for i, plain in enumerate(whole["evaluations"][:3]):
        scores = {name: from_dict(Score, score) for name, score in plain["scores"].items()}
        without = ("bits-per-dim",) if i == 1 else ()
        assert scores == evaluation("", i, without=without).scores
    assert from_dict(Subject, whole["evaluations"][1]["subject"]).options == {"steps": 20}


def test_csv_holds_every_number_with_its_protocol(report: Path) -> None:
    with (report / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    one = {row["measure"]: row for row in rows if row["subject"] == "runs/one"}
    expected = evaluation("runs/one", 0)
    assert set(one) == {*expected.scores, "training-minutes"}
    for name, score in expected.scores.items():
        row = one[name]
        assert float(row["value"]) == score.value
        assert row["error"] == ("" if score.error is None else str(score.error))
        assert row["floor"] == ("" if score.floor is None else str(score.floor))
        assert [row["unit"], row["better"], row["group"]] == [score.unit, score.better, score.group]
        protocol = dataclasses.asdict(score.protocol)
        assert {key: row[key] for key in protocol} == {k: "" if v is None else str(v) for k, v in protocol.items()}
    assert float(one["training-minutes"]["value"]) == 10
    assert len(rows) == 14 + 13 + 14 + 6


def test_speeds_of_two_machines_do_not_stand_side_by_side(two_machines: Path) -> None:
    root = Page((two_machines / "index.html").read_text()).root
    assert "images/s" not in " ".join(table.text for table in tables_of(root))
    assert f"measured on {MACHINE}, others on another machine" in section(root, "Not measured").text
    plain = json.loads((two_machines / "results.json").read_text())["evaluations"]
    assert plain[1]["scores"]["memory"]["protocol"]["machine"] == "another"  # each by itself is still a number


def test_subjects_of_one_name_are_with_unique_names() -> None:
    def names(*subjects: Subject) -> list[str]:
        return [e.subject.name for e in with_unique_names([Evaluation(s, {}, {}, {}) for s in subjects])]

    a = Subject("a", "tiny", "EMA", 0)
    fast = dataclasses.replace(a, options={"steps": 5, "temperature": 1})
    slow = dataclasses.replace(a, options={"steps": 50, "temperature": 1})
    assert names(fast, slow) == ["a (steps 5)", "a (steps 50)"]
    assert names(a, dataclasses.replace(a, seed=1), Subject("b", "tiny")) == ["a (seed 0)", "a (seed 1)", "b"]
    assert names(a, dataclasses.replace(a, candidates=4, best_by="realism")) == ["a", "a (best of 4)"]
    assert names(a, a, a, Subject("a #2", "tiny")) == ["a", "a #2", "a #3", "a #2 #2"]


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (2_804_123, "", "2.80 M"),
        (843_210, "", "843,210"),
        (12.34e9, "FLOPs/image", "12.3 GFLOPs"),
        (999.9e6, "FLOPs", "1.00 GFLOPs"),
        (5.0, "FLOPs", "5 FLOPs"),
        (1.5 * 2**30, "bytes", "1.50 GiB"),
        (512.0, "bytes", "512 B"),
        (2e21, "FLOPs", "2.00 ZFLOPs"),
        (2e27, "FLOPs", "2000 YFLOPs"),
        (22.5, "dB", "22.50"),
        (0.25, "", "0.2500"),
        (float("inf"), "dB", "inf"),
        (float("nan"), "FLOPs", "nan"),
    ],
)
def test_large_numbers_have_prefixes(value: float, unit: str, expected: str) -> None:
    assert amount(value, unit) == expected


def test_columns_come_in_order_and_unknown_measures_last() -> None:
    one = evaluation("one")
    of_features = one.scores["fd-faces"].protocol
    other = dataclasses.replace(of_features, extractor="inception")
    extra = {
        "novelty-faces": Score(1, "higher", "", of_features),
        "fid": Score(1, "lower", "", other),
        "rfid": Score(1, "lower", "", other, group="reconstruction"),
    }
    names = [column.name for column in columns([dataclasses.replace(one, scores=extra | one.scores)])]
    assert names[:3] == ["fid", "fd-faces", "kd-faces"]
    assert names[6:10] == ["novelty-faces", "psnr", "ssim", "rfid"]


def test_no_table_has_more_than_twelve_columns() -> None:
    protocol = Protocol(**FEATURES)
    scores = {f"measure{i}-faces": Score(float(i), "lower", "", protocol) for i in range(15)}
    many = [Evaluation(Subject("a", "tiny"), scores, {}, {})]
    tables = numbers(many, columns(many))
    assert [len(table.headings) for table in tables] == [12, 3]
    assert [table.groups for table in tables] == [[("Samples", 12)], [("Samples", 3)]]


def test_what_is_no_number_is_never_best() -> None:
    def score(value: float) -> Score:
        return Score(value, "lower", "", Protocol())

    assert Column("x", (score(float("nan")), score(2), None, score(1))).best == 1
    assert Column("x", (score(float("nan")), score(2))).best is None
    assert Column("x", (score(2), score(2))).best is None  # all alike


# ---- the figures ----


def test_figures_are_fit_to_print(report: Path) -> None:
    found = {path.name: Image.open(path).convert("RGB") for path in (report / "figures").iterdir()}
    plots = {"fd-faces-images-per-second.png", "fd-faces-training-minutes.png", "reconstructions.png"}
    assert plots <= set(found)
    assert len(found) == 3 + 2 * 4  # and the samples, and the least and most realistic ones, of each
    for name, image in found.items():
        assert image.width >= 1000, name
        assert image.getpixel((0, 0)) == (255, 255, 255), name
        assert np.asarray(image).std() > 10, name
    sheet = np.asarray(found["samples-runs-one.png"])
    sample = evaluation("runs/one", 0).pictures["samples"][0]
    assert sheet.shape[0] % 138 == 0  # 64 samples in 16 columns, with gaps of 2 pixels, each enlarged by a whole number
    factor = sheet.shape[0] // 138
    assert (sheet[2 * factor : 34 * factor : factor, 2 * factor : 34 * factor : factor] == sample).all()


def test_quality_over_cost_is_logarithmic_over_more_than_a_decade() -> None:
    shown = [with_training(evaluation(name, seed)) for seed, name in enumerate(("a", "b", "c"))]
    found = columns(shown)
    pairs = trade_offs(found)
    assert [(quality.name, cost.name) for quality, cost in pairs] == [
        ("fd-faces", "images-per-second"),  # 1000, 100 and 10
        ("fd-faces", "training-minutes"),  # 10, 20 and 30
    ]
    assert points(*pairs[0]) == {i: (10.0 ** (3 - i), e.scores["fd-faces"].value) for i, e in enumerate(shown)}
    with drawn_in("black"):
        drawn = [plot(["a", "b", "c"], *pair, "black").axes[0] for pair in pairs]
    assert [axes.get_xscale() for axes in drawn] == ["log", "linear"]
    assert drawn[0].get_xlabel() == "images/s, higher is better, logarithmic"
    assert drawn[0].get_ylabel() == "FD (faces), lower is better"
    assert [text.get_text() for text in drawn[0].texts] == ["real images, same n", "a", "b", "c"]
    boxes = [text.get_window_extent() for text in drawn[0].texts]
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])


def test_operations_stand_in_for_speeds_that_cannot_be_compared(two_machines: Path) -> None:
    assert (two_machines / "figures" / "fd-faces-sample-flops.png").exists()


@pytest.mark.parametrize(
    ("size", "width", "count", "columns_"), [(64, 528, 64, 8), (32, 528, 64, 16), (128, 528, 16, 4), (256, 528, 8, 2)]
)
def test_large_pictures_are_fewer(size: int, width: int, count: int, columns_: int) -> None:
    images, across = samples_shown(np.zeros((100, size, size, 3), np.uint8), width)
    assert (len(images), across) == (count, columns_)


def test_file_names_are_harmless_and_different() -> None:
    assert file_names(["../a b", "a/b", "A-B", "<>", "x" * 99]) == ["a-b", "a-b-2", "A-B-3", "subject", "x" * 60]


# ---- what is refused ----


def test_differing_protocols_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"bits-per-dim of one and of two .*\(n: 2000 and 1000\)") as error:
        write_report([evaluation("one"), evaluation("two", n=1000)], tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    for out in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(ValueError, match="is not an empty folder: choose another --out"):
            write_report([evaluation()], out)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(ValueError, match="nothing to compare"):
        write_report([], tmp_path / "new")
