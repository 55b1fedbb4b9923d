"""The `genmodels` command: files written, input refused, and exit statuses."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from tiny_model import Asked, AskedConfig, OnlySamples, Tiny, TinyConfig

import genmodels
from genmodels import sampling
from genmodels.abilities import ABILITIES
from genmodels.autoregressive import Autoregressive, AutoregressiveConfig
from genmodels.cli import COMMANDS, DATA_COMMANDS, fold_options, main
from genmodels.cli.arguments import ConditionFlags
from genmodels.conditions import Condition, ConditionConfig
from genmodels.data import open_data
from genmodels.data.sheet import _label
from genmodels.evaluation.extractors import Extractor
from genmodels.evaluation.images import Images
from genmodels.evaluation.realism import most_realistic
from genmodels.nn.transformer import TransformerConfig
from genmodels.pictures import save_grid, to_uint8

ROOT = Path(__file__).parent.parent


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a run folder of family tiny, and change to an empty working directory."""
    for kind in (Tiny, Asked, OnlySamples):
        monkeypatch.setitem(genmodels.FAMILIES, kind.family, f"tiny_model:{kind.__name__}")
    Tiny(TinyConfig()).save_pretrained(tmp_path / "run")
    Asked(AskedConfig()).save_pretrained(tmp_path / "asked")
    OnlySamples(TinyConfig()).save_pretrained(tmp_path / "only")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "run"


def fails(capsys: pytest.CaptureFixture[str], status: int, *arguments: str | Path) -> str:
    """Run the command, which must fail, and return its one-line message."""
    assert main([str(a) for a in arguments]) == status
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("genmodels: error: ")
    return lines[0].removeprefix("genmodels: error: ")


# ---- the command line itself ----


@pytest.mark.parametrize("arguments", [["-c", "import genmodels.cli"], ["-m", "genmodels", "sample", "--help"]])
def test_help_needs_no_torch(arguments: list[str]) -> None:
    code = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(code, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "tyro" in loaded
    assert "torch" not in loaded


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in [*COMMANDS, "data"])
    assert main(["data", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in DATA_COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("sing", "Unrecognized options: sing"),
        ("sample", "Missing from genmodels sample: RUN"),
        ("sample run --n many", "Error parsing --n"),
        ("sample run --temperature", "--temperature needs a value"),
        ("sample run --out faces.bmp", "end it in .png or .npy"),
        ("info run --splat 3", "Unrecognized options: --splat, 3"),
        ("evaluate run --data toyfaces --split sideways", "invalid choice 'sideways'"),
        ("evaluate run --n 255", "255 images are too few"),
        ("compare", "nothing to compare"),
        ("evaluate run --data toyfaces --extractors fases", "unknown extractor 'fases'; known: faces, inception"),
        ("evaluate run", "there is no run here; if it is the id of a model on the Hub, give --data"),
        ("train vae --config", "--config needs a value"),
        ("reconstruct run", "no images given"),
        ("inpaint run", "no images given"),
        ("inpaint run a.png --known 1", "--known must be a fraction in [0, 1)"),
        ("interpolate run --seeds 1", "needs at least 2 --seeds"),
        ("data pack emnist --root a --out b", "Expected one of ('celeba', 'folder', 'mnist', "),
        ("train gun", "unknown family 'gun'; known: ae, autoregressive, "),
    ],
)
def test_bad_usage_is_one_line_and_status_2(arguments: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert expected in fails(capsys, 2, *arguments.split())


def test_without_arguments_it_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in [*COMMANDS, "data"])
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"genmodels {genmodels.__version__}\n"


@pytest.mark.parametrize("arguments", [["train"], ["train", "--help"], ["train", "--help", "vae"]])
def test_train_lists_the_families(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    listed = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert listed.keys() >= set(genmodels.FAMILIES) - {"latent"}
    assert "Variational autoencoder" in listed["vae"]


def test_every_ability_with_a_command_has_that_command() -> None:
    named = {row.command.split()[0] for row in ABILITIES if row.command}
    assert named <= set(COMMANDS)


def test_all_commands_share_the_flags_of_the_condition() -> None:
    for name in ("sample", "inpaint", "edit", "trajectory"):
        parameter = inspect.signature(COMMANDS[name]).parameters["condition"]
        assert parameter.default == ConditionFlags()


@pytest.mark.parametrize("arguments", [["train", "vae", "--help"], ["sample", "--help"], []])
def test_a_reader_that_leaves_is_no_error(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)  # such as `| head`, once it has its lines
    command = [sys.executable, "-m", "genmodels", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.stderr == ""


def test_a_traceback_only_with_debug(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "nowhere", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err
    assert "no such model folder" in fails(capsys, 1, "info", "nowhere")


def test_what_nobody_foresaw_is_one_line_too(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(sampling, "sample", broken)
    assert fails(capsys, 1, "sample", run) == "RuntimeError: out of memory (--debug shows where)"


def test_options_of_the_family_are_folded() -> None:
    given = ["sample", "--top-k", "9", "runs/x", "--n", "4", "--scale=-1.5", "--no-such", "-2", "--force"]
    kept = ["sample", "runs/x", "--n", "4", "--force"]
    assert fold_options(given) == [*kept, "--options", "top_k=9", "scale=-1.5", "no_such=-2"]
    assert fold_options(["info", "runs/x", "--top-k", "9"]) == ["info", "runs/x", "--top-k", "9"]
    assert fold_options([]) == []


def test_train_hands_the_rest_to_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    before = list(sys.argv)
    assert main(["train", "vae", "--help"]) == 0
    common = capsys.readouterr().out
    assert main(["train", "vae", "--help-all"]) == 0
    everything = capsys.readouterr().out
    assert "genmodels train vae" in common and "--model.latent-dim" in common
    assert 15 <= common.count("(default: ") <= 25
    for group in ("data", "run", "length", "optimisation", "model", "logging"):
        assert f" {group} options " in common
    for flag in ("--model.free-bits", "--optim.betas", "--keep"):
        assert flag not in common and flag in everything
    assert "--model.size" not in everything and "--codec-minutes" not in everything
    assert sys.argv == before
    assert "--steps" in fails(capsys, 2, "train", "vae", "--steps", "5", "--minutes", "1")


# ---- sample ----


def test_sample_writes_all_three_forms(run: Path) -> None:
    expected = to_uint8(genmodels.load(run).generate(5, seed=3, temperature=0.5, latents="mixture", steps=2))
    options = ["--temperature", "0.5", "--latents", "mixture", "--steps=2"]
    for out in ("a.npy", "b/", "c.png"):
        assert main(["sample", str(run), "--n", "5", "--seed", "3", "--out", out, *options]) == 0
    assert np.array_equal(np.load("a.npy"), expected)
    assert np.array_equal([np.asarray(Image.open(path)) for path in sorted(Path("b").iterdir())], expected)
    save_grid("d.png", expected)
    with Image.open("c.png") as marked, Image.open("d.png") as plain:
        assert np.array_equal(np.asarray(marked), np.asarray(plain))
        assert marked.info["Description"].startswith("Generated by a ") and "Description" not in plain.info


def test_sample_overwrites_nothing_unasked(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.npy").write_text("precious")
    Path("full").mkdir()
    Path("full/mine").write_text("precious")
    assert "mine.npy exists" in fails(capsys, 1, "sample", run, "--n", "1", "--out", "mine.npy")
    assert "full is not an empty folder" in fails(capsys, 1, "sample", run, "--n", "1", "--out", "full", "--force")
    assert Path("mine.npy").read_text() == "precious"
    assert [path.name for path in Path("full").iterdir()] == ["mine"]
    assert main(["sample", str(run), "--n", "1", "--out", "mine.npy", "--force"]) == 0
    assert np.load("mine.npy").shape == (1, 16, 16, 3)


def test_sample_refuses_options(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unknown = fails(capsys, 2, "sample", run, "--guidance", "2")
    assert unknown == "unknown option 'guidance' for sampling tiny; known: temperature, latents, steps"
    assert "temperature" in fails(capsys, 2, "sample", run, "--temperature", "warm")
    assert "mixture" in fails(capsys, 2, "sample", run, "--latents", "some")


def test_sample_with_conditions(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = run.parent / "asked"
    assert main(["sample", str(asked), "--n", "3", "--out", "a.npy", "--attributes", "Eyeglasses=no, Smiling=yes"]) == 0
    condition = Condition(attributes=torch.tensor([[1.0, -1.0]] * 3))
    expected = to_uint8(genmodels.load(asked).generate(3, condition=condition))
    assert np.array_equal(np.load("a.npy"), expected)
    assert main(["sample", str(asked), "--n", "2", "--out", "b.npy", "--label", "2"]) == 0
    for arguments, message in [
        (["--attributes", "Beard=yes"], "unknown attribute 'Beard'; this model knows: Smiling, Eyeglasses"),
        (["--attributes", "Smiling=maybe"], "write yes or no"),
        (["--attributes", "Smiling"], "write NAME=VALUE"),
        (["--label", "3"], "it has labels 0 to 2"),
        (["--label", "sea lion"], "label 'sea lion': this model does not know it"),
    ]:
        assert message in fails(capsys, 2, "sample", asked, *arguments)
    assert "trained without attributes" in fails(capsys, 2, "sample", run, "--attributes", "Smiling=yes")
    assert "trained without labels" in fails(capsys, 2, "sample", run, "--label", "0")


def test_sample_keeps_the_best_of_several(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    colours = Extractor("colours", lambda images: images[..., ::8, ::8].float().flatten(1))
    monkeypatch.setattr("genmodels.evaluation.extractors.load_extractor", lambda spec, device="cpu": colours)
    real = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8)
    np.save("real.npy", real)
    np.save("few.npy", real[:3])
    command = ["sample", str(run), "--n", "5", "--seed", "3", "--steps", "2"]
    assert main([*command, "--best-of", "4", "--data", "real.npy", "--out", "best.npy"]) == 0
    said = capsys.readouterr().out
    assert "each image is the best of 4 by realism (colours, compared with 40 images of real.npy)" in said
    assert "an image takes 4 network evaluations and" in said
    best = most_realistic(4, Images(real, "real"), colours)
    expected = sampling.sample(genmodels.load(run), 5, 3, best=best, steps=2, progress=False)
    assert np.array_equal(np.load("best.npy"), expected)
    assert main([*command, "--best-of", "1", "--out", "plain.npy"]) == 0
    assert not np.array_equal(np.load("plain.npy"), expected)
    for status, arguments, message in [
        (2, ["--best-of", "0"], "--best-of must be at least 1, got 0"),
        (2, ["--best-of", "4"], "does not record which images it was trained on: give --data"),
        (2, ["--data", "real.npy"], "--data, --root and --extractor are for --best-of"),
        (2, ["--extractor", "dinov2"], "--data, --root and --extractor are for --best-of"),
        (1, ["--best-of", "4", "--data", "few.npy"], "features of at least 4 images are needed, got 3"),
        (1, ["--best-of", "4", "--data", "nowhere"], "--data nowhere: expected"),
    ]:
        assert message in fails(capsys, status, *command, "--out", "new.npy", *arguments)


# ---- reconstruct, interpolate ----


def test_reconstruct_crops_and_pairs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    celeba = np.zeros((218, 178, 3), np.uint8)
    celeba[20:198] = (200, 100, 50)  # what the crop keeps
    Image.fromarray(celeba).save("a.png")
    Image.new("L", (40, 16), 255).save("b.png")
    assert main(["reconstruct", str(run), "a.png", "b.png", "--out", "pairs.png"]) == 0
    sheet = np.asarray(Image.open("pairs.png"))
    assert sheet.shape == (2 + 2 * 18, 2 + 2 * 18, 3)
    assert (sheet[2:18, 2:18] == (200, 100, 50)).all()
    assert (sheet[20:36, 20:36] == 191).all()  # white, halved by the model
    Path("text.png").write_text("not a picture")
    assert "text.png: not an image" in fails(capsys, 1, "reconstruct", run, "text.png", "--out", "c.png")
    assert "absent.png: No such file" in fails(capsys, 1, "reconstruct", run, "absent.png", "--out", "c.png")
    assert "pairs.png exists" in fails(capsys, 1, "reconstruct", run, "a.png")
    assert "do not reconstruct" in fails(capsys, 1, "reconstruct", run.parent / "only", "absent.png", "--out", "c.png")


def test_interpolate_to_strip_and_animation(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["interpolate", str(run), "--seeds", "4", "5", "--frames", "6", "--out", "strip.png"]) == 0
    strip = np.asarray(Image.open("strip.png"))
    assert strip.shape == (20, 2 + 6 * 18, 3)
    first = sampling.sample(genmodels.load(run), 1, seed=4, progress=False)[0]
    assert np.array_equal(strip[2:18, 2:18], first)
    arguments = ["--seeds", "1", "2", "3", "--frames", "4", "--out", "tour.gif", "--temperature", "0.5"]
    assert main(["interpolate", str(run), *arguments]) == 0
    with Image.open("tour.gif") as tour:
        assert len(list(ImageSequence.Iterator(tour))) == 9
    assert main(["interpolate", str(run), "--walks", "13", "--frames", "3", "--out", "walks.webp"]) == 0
    with Image.open("walks.webp") as walks:  # two rows of seven, there and back
        assert (walks.n_frames, walks.size) == (4, (7 * 18 - 2, 2 * 18 - 2))
        shown = np.asarray(walks.convert("RGB")).astype(int)
    last = sampling.sample(genmodels.load(run), 13, seed=1, progress=False)[12]
    assert abs(shown[18:, 90:106] - last).mean() < 12  # lossy
    assert (abs(shown[18:, 108:] - 128) < 12).all()  # no fourteenth walk
    assert "--walks 2 needs --seeds, and an animation" in fails(capsys, 2, "interpolate", run, "--walks", "2")
    assert "must end in .png or .gif" in fails(capsys, 2, "interpolate", run, "--out", "x.npy")
    assert "do not interpolate" in fails(capsys, 1, "interpolate", run.parent / "only", "--out", "x.png")


def test_inpaint_shows_what_is_known_and_ways_to_go_on(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    small = TransformerConfig(width=16, depth=1, heads=2)
    model = Autoregressive(
        AutoregressiveConfig(size=8, levels=4, condition=ConditionConfig(("Smiling",)), transformer=small)
    )
    model.save_pretrained("ar")
    for name, colour in (("a.png", (40, 90, 200)), ("b.png", (230, 10, 10))):
        Image.new("RGB", (8, 8), colour).save(name)
    arguments = ["--known", "0.25", "--n", "3", "--attributes", "Smiling=yes", "--temperature", "0.9"]
    assert main(["inpaint", "ar", "a.png", "b.png", *arguments]) == 0
    sheet = np.asarray(Image.open("completed.png"))
    assert sheet.shape == (2 + 2 * 10, 2 + 5 * 10, 3)
    rows = sheet[2:, 2:].reshape(2, 10, 5, 10, 3).swapaxes(1, 2)[:, :, :8, :8]  # (images, columns, 8, 8, 3)
    assert (rows[0, 0] == (40, 90, 200)).all() and (rows[0, 1, :2] == (40, 90, 200)).all()
    assert (rows[:, 1, 2:] == 127).all()
    assert np.abs(rows[0, 2:, :2].astype(int) - (32, 96, 224)).max() <= 1, "the known rows, in four shades"
    assert len({part.tobytes() for part in rows[:, 2:].reshape(6, -1)}) == 6
    assert "completed.png exists" in fails(capsys, 1, "inpaint", "ar", "a.png")
    for command in ("inpaint", "edit"):  # what the model cannot do comes first, and no file of the user is read
        assert "models do not" in fails(capsys, 1, command, run.parent / "only", "absent.png", "--out", "c.png")


# ---- data, info ----


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(12):
        path = tmp_path / "pictures" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(path)
    (tmp_path / "pictures" / "broken.png").write_bytes(b"")
    return tmp_path / "pictures"


def test_pack_show_export(run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "pack", "folder", "--root", str(pictures), "--size", "16", "--out", "packed"]) == 0
    said = capsys.readouterr().out
    assert "16 px" in said
    assert "skipped broken.png: empty file" in said
    assert main(["data", "show", "packed", "--n", "4"]) == 0
    assert Image.open("sheet.png").width > 100
    assert main(["data", "export", "packed", "packed.zip"]) == 2
    assert main(["data", "export", "packed", "--out", "packed.zip"]) == 0
    assert Path("packed.zip").stat().st_size > 1000


def test_show_counts_and_names_the_classes(run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f"{i}.png,{'[sea lion]' if i % 3 else 'cat'}\n" for i in range(11))
    (pictures / "labels.csv").write_text(f"file,label\n{rows}")
    assert main(["data", "pack", "folder", "--root", str(pictures), "--size", "16", "--out", "packed"]) == 0
    capsys.readouterr()
    assert main(["data", "show", "packed", "--n", "12"]) == 0
    said = capsys.readouterr().out
    assert "classes: [sea lion] (7), cat (4); 1 images without a label" in said
    packed = open_data("packed", size=None)
    captions = {name: _label(packed, i) for i, name in enumerate(packed.names)}
    assert captions["0.png"] == "0.png\ncat" and captions["11.png"] == "11.png\nno label"
    two = replace(packed, attributes=np.ones((12, 2), np.int8), attribute_names=("Fur", "Black_Fur"))
    assert _label(two, packed.names.index("0.png")) == "0.png\ncat\nFur, Black Fur"


def test_info_lists_the_classes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    three = ConditionConfig(classes=3, class_names=("[sea lion]", "cat", "dog"))
    many = ConditionConfig(classes=50, class_names=tuple(f"kind {i}" for i in range(50)))
    for name, condition in (("three", three), ("many", many)):
        Asked(AskedConfig(condition=condition)).save_pretrained(run.parent / name)
    assert main(["info", str(run.parent / "three")]) == 0
    assert "3: [sea lion], cat, dog" in " ".join(capsys.readouterr().out.split())
    assert main(["info", str(run.parent / "many")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "50: kind 0, kind 1," in said and "kind 19, ..." in said and "class_names=(50 values)" in said
    assert "kind 20" not in said
    assert main(["info", str(run.parent / "asked")]) == 0  # its classes have no names
    assert "condition.classes=3" in capsys.readouterr().out


def test_info_says_what_a_model_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "config.yaml").write_text("family: tiny\nsteps: 7\noptim:\n  lr: 0.001\n")
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 9}\n{"step": 7, "loss": 0.25}\n')
    assert main(["info", str(run)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in (
        "60",
        "reconstruct images (genmodels reconstruct)",
        "interpolate",
        "likelihood",
        "size=16",
        "temperature=1",
        f"operations {2 * 2 * 4 * 12} FLOPs per image of a training step",
    ):
        assert part in said
    assert "steps=7, optim.lr=0.001" in said
    assert "step=7, loss=0.25" in said
    assert main(["info", str(run.parent / "only")]) == 0
    assert "reconstruct" not in capsys.readouterr().out


def test_a_damaged_model_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "config.json").write_text("{")
    assert "is not JSON" in fails(capsys, 1, "info", run)


def test_long_and_short_options_together_are_both_kept() -> None:
    folded = fold_options(["sample", "run", "--options", "latents=prior", "--temperature", "0.8"])
    assert folded == ["sample", "run", "--options", "temperature=0.8", "latents=prior"]
    assert fold_options(["sample", "run", "--options=latents=prior", "--temperature", "0.8"]) == folded


def test_info_of_a_run_that_was_killed_while_it_wrote(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "metrics.jsonl").write_text('{"step": 7, "loss": 0.25}\n{"step": 8, "lo')
    assert main(["info", str(run)]) == 0
    assert "step=7, loss=0.25" in capsys.readouterr().out
    (run / "config.yaml").write_text("{")
    assert "config.yaml is not YAML" in fails(capsys, 1, "info", run)


def test_a_missing_ability_is_said_before_anything_about_files(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("taken.png").write_text("mine")
    Path("notes.jpg").write_text("no picture")
    only = run.parent / "only"
    for command, ability in (
        (f"inpaint {run} notes.jpg --mask nowhere.png", "complete images"),
        (f"edit {only} notes.jpg", "edit images"),
        (f"reconstruct {only} nowhere.jpg", "reconstruct images"),
        (f"interpolate {only} --images nowhere.jpg notes.jpg", "interpolate between given images"),
        (f"traverse {only} nowhere.jpg", "whose space has directions of attributes"),
        (f"trajectory {only}", "denoise step by step"),
    ):
        assert ability in fails(capsys, 1, *command.split(), "--out", "taken.png"), command
    assert Path("taken.png").read_text() == "mine"
