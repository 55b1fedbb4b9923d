"""What is printed: names that look like markup, terminals with few characters, readers that left."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tyro
from evaluations import evaluation
from PIL import Image
from test_cli import fails, run
from test_evaluate import EXTRACTOR, faces

from genmodels.cli import main
from genmodels.evaluation.columns import columns
from genmodels.evaluation.figures import plot, strips, trade_offs
from genmodels.evaluation.report import INK, curves, drawn_in, markup
from genmodels.reading import in_one_line
from genmodels.training.fit import fit
from genmodels.usage import UsageError, one_line_refusals, say

__all__ = ["run"]
PACKAGE = Path(__file__).parent.parent / "genmodels"
MARKUP = "[red]x[/red] [/] [link=a]  :smile: {task}"
"""A path that would be an error, a colour, a link and an emoji as markup."""
MATHS = ("$x_1$", "a_b^c$", r"$\frac{$", "_hidden", "%s {0}")


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what was printed, without colours and frames."""
    both = capsys.readouterr()
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", both.out + both.err)


@pytest.fixture
def quick(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genmodels.evaluation.extractors.load_extractor", lambda spec, device="cpu": EXTRACTOR)
    monkeypatch.setenv("COLUMNS", "250")
    np.save("real.npy", faces().images[:300])


@pytest.mark.usefixtures("quick")
def test_names_are_never_markup_in_any_command(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("GENMODELS_CACHE", f"cache/{MARKUP}")
    model, photos = Path("runs") / MARKUP, Path("photos") / MARKUP
    shutil.copytree(run, model)
    (model / "config.yaml").write_text(json.dumps({"family": "tiny", "data": "folder", "root": str(photos)}))
    photos.mkdir(parents=True)
    Path(f"{MARKUP}.npy").parent.mkdir(parents=True)
    np.save(f"{MARKUP}.npy", faces(1).images[:260])
    for i, image in enumerate(faces().images[:40]):
        Image.fromarray(image).save(photos / f"{i}[bold].png")
    (photos / "[red]broken[].png").write_bytes(b"no picture")

    assert main(["data", "pack", "folder", "--root", str(photos), "--size", "16", "--out", f"pack/{MARKUP}"]) == 0
    assert "skipped [red]broken[].png" in said(capsys)
    assert main(["data", "show", f"pack/{MARKUP}", "--n", "4", "--out", f"sheet/{MARKUP}.png"]) == 0
    assert f"sheet in sheet/{MARKUP}.png" in said(capsys)
    assert main(["info", str(model)]) == 0
    assert f"root={photos}" in said(capsys)
    assert main(["evaluate", f"{MARKUP}.npy", "--data", "real.npy", "--json", f"{MARKUP}.json"]) == 0
    text = said(capsys)
    assert f"{MARKUP}.npy" in text and f"metrics and protocols in {MARKUP}.json" in text
    assert main(["compare", f"{MARKUP}.json", "--out", f"report/{MARKUP}"]) == 0
    assert f"Open report/{MARKUP}/index.html in a browser." in said(capsys)
    assert f"[/] [link=a]  :smile: {{task}}-{'x' * 9} " in fails(
        capsys, 1, "info", f"[/] [link=a]  :smile: {{task}}-{'x' * 9} "
    )


@pytest.mark.parametrize("terminal", [False, True])
def test_names_are_never_markup_in_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    output = tmp_path / MARKUP
    fit(tiny.tiny(), tiny.faces(), tiny.recipe(output, steps=5))
    text = said(capsys)
    assert f", into {output}\n" in text and f"{output}\n" in text.partition("trained 5 steps")[2]


def test_names_are_never_formulas_in_figures() -> None:
    shown = [evaluation(name, seed) for seed, name in enumerate(MATHS)]
    with drawn_in(INK):
        scatter = markup(plot(MATHS, *trade_offs(columns(shown))[0], INK))
        rows = markup(strips([(name, faces().images[:2]) for name in MATHS]))
    for name in MATHS:
        assert f">{name}</text>" in scatter, name
        assert f">{name}</text>" in rows, name
    assert ">$x_1$</text>" in curves({"$x_1$": ([0, 1], [0, 1]), "b": ([0, 1], [1, 0])}, "x", "y")


@pytest.mark.usefixtures("quick")
def test_a_terminal_of_few_characters_gets_escapes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "\u00e9\U0001f600\udcff.npy"  # the last character stands for a byte that is not UTF-8
    np.save(name, faces(1).images[:260])
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", stdout)
    assert main(["evaluate", name, "--data", "real.npy"]) == 0
    stdout.flush()
    printed = stdout.buffer.getvalue().decode("ascii")
    assert r"\xe9\U0001f600\udcff.npy" in printed and r"fd-colours \u2193 *" in printed


def test_nobody_who_reads_is_no_wrong_usage() -> None:
    with pytest.raises(SystemExit), one_line_refusals():
        raise SystemExit(1)  # by rich, when standard output is a closed pipe
    with pytest.raises(UsageError, match="Unrecognized"), one_line_refusals():
        tyro.cli(tiny.TinyConfig, args=["--nothing"])


def test_a_message_is_one_line_and_keeps_the_spaces_of_a_path(capsys: pytest.CaptureFixture[str]) -> None:
    say("cannot read a  b.png:\n   it is empty")
    assert capsys.readouterr().err == "cannot read a  b.png: it is empty\n"


def test_standard_output_on_a_full_disk_is_one_plain_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdout = io.TextIOWrapper(io.BufferedWriter(FullDisk(tmp_path / "out", "w")))
    monkeypatch.setattr(sys, "stdout", stdout)
    assert main(["--version"]) == 1
    said = "genmodels: error: cannot write to standard output: the disk is full; free some space and try again\n"
    assert capsys.readouterr().err == said
    assert os.path.samestat(os.fstat(stdout.fileno()), os.stat(os.devnull))  # for the flush at exit


class FullDisk(io.FileIO):
    full = True

    def write(self, content: Any) -> int:
        if self.full:
            self.full = False
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(content)


def test_only_usage_makes_consoles() -> None:
    for path in PACKAGE.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        if path.name != "usage.py":
            assert not re.search(r"\bConsole\(|from_markup|rich\.print|rich import print", source), path
        for call in re.findall(r"TextColumn\([^()]*\)", source):
            assert "markup=False" in call, f"{path}: {call} reads names as markup"


def test_a_message_stays_short_and_cannot_control_the_terminal() -> None:
    text = in_one_line("a.json: unknown setting '" + "x" * 100_000 + "'; known: \x1b[2J\nsize\x7f", 800)
    assert len(text) < 900 and text.startswith("a.json: unknown") and text.endswith("known: \\x1b[2J size\\x7f")
    assert in_one_line("two  spaces\n  next") == "two  spaces next"
