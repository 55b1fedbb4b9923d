"""`genmodels evaluate` and `compare`: models, image files, saved results, and input refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_cli import fails, run
from test_evaluate import EXTRACTOR, faces
from tiny_model import Tiny, TinyConfig

from genmodels import pictures
from genmodels.cli import main
from genmodels.cli.evaluation import _model_size, _read_saved
from genmodels.evaluation.evaluate import evaluate_images
from genmodels.evaluation.images import Images
from genmodels.evaluation.results import Evaluation, read_evaluation

__all__ = ["run"]


@pytest.fixture(autouse=True)
def _quick(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Save real images and two other sets in the working directory, and use a trivial extractor."""
    monkeypatch.setattr("genmodels.evaluation.extractors.load_extractor", lambda spec, device="cpu": EXTRACTOR)
    np.save("real.npy", faces().images[:300])
    np.save("one.npy", faces(1).images[:260])
    np.save("two.npy", faces(2).images[:260])


def test_a_model_against_real_images(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", str(run), "--data", "real.npy", "--n", "256", "--temperature", "0.5", "--json", "m/m.json"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "fd-colours ↓ *" in said and "* fewer than 2,048 images" in said
    assert "not measured: lpips: LPIPS needs" in said
    assert "protocol: data real.npy" in said
    kept = json.loads(Path("m/m.json").read_text())
    assert kept["scores"]["fd-colours"]["protocol"]["n"] == 256
    assert kept["scores"]["psnr"]["unit"] == "dB"
    assert kept["subject"]["name"] == str(run)
    assert kept["subject"]["options"]["temperature"] == 0.5
    assert kept["made"]["code"][0].isdigit()
    assert "m.json exists" in fails(capsys, 1, *command)
    assert "unknown option 'splat'" in fails(capsys, 2, "evaluate", run, "--data", "real.npy", "--splat", "3")


def test_the_data_a_run_was_trained_on_is_the_default(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "give --data" in fails(capsys, 2, "evaluate", run)
    (run / "config.yaml").write_text("family: tiny\ndata: real.npy\nfingerprint: known\nema: 0.05\n")
    (run / "metrics.jsonl").write_text('{"step": 7, "images": 56, "elapsed": 90.0}\n')
    assert main(["evaluate", str(run), "--n", "256", "--json", "m.json"]) == 0
    subject = json.loads(Path("m.json").read_text())["subject"]
    assert (subject["weights"], subject["training"]) == ("EMA", {"images": 56, "steps": 7, "minutes": 1.5})


def test_two_sets_of_images_against_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    pictures.save_images("folder", faces(1).images[:260])
    assert main(["evaluate", "folder", "--data", "real.npy", "--json", "folder.json"]) == 0
    assert main(["evaluate", "one.npy", "--data", "real.npy", "--json", "array.json"]) == 0
    folder, array = (json.loads(Path(f"{name}.json").read_text()) for name in ("folder", "array"))
    assert folder["scores"]["fd-colours"] == array["scores"]["fd-colours"]  # the same pixels, the same number
    assert "sampling options" in fails(capsys, 2, "evaluate", "one.npy", "--data", "real.npy", "--temperature", "1")
    assert "--best-of 2 is for models" in fails(
        capsys, 2, "evaluate", "one.npy", "--data", "real.npy", "--best-of", "2"
    )
    assert "at least 1, got 0" in fails(capsys, 2, "evaluate", "one.npy", "--data", "real.npy", "--best-of", "0")


def test_candidates_are_compared_with_training_images(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genmodels.data.open_data", lambda *how: faces())
    command = ["evaluate", str(run), "--n", "256", "--best-of", "2", "--json", "m.json"]
    assert main([*command, "--data", "toyfaces"]) == 0
    assert "samples: each the best of 2 by realism (colours, compared with 600 images of" in capsys.readouterr().out
    subject = read_evaluation(Path("m.json")).subject
    assert subject.candidates == 2 and "600 images" in subject.best_by
    assert "leave out best_of" in fails(capsys, 1, *command, "--data", "real.npy", "--force")


def test_bad_input_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("few.npy", faces().images[:9])
    np.save("same.npy", np.repeat(faces().images[:1], 300, 0))
    Path("text.npy").write_text("no array")
    Path("mixed").mkdir()
    for side in (16, 20):
        Image.new("RGB", (side, side)).save(f"mixed/{side}.png")
    for source, reason in (
        ("few.npy", "9 images are too few"),
        ("same.npy", "all 300 images"),
        ("text.npy", "text.npy"),
        ("mixed", "--size"),
        ("nowhere.npy", "no such"),
    ):
        assert reason in fails(capsys, 1, "evaluate", source, "--data", "real.npy")
    assert "expected toyfaces" in fails(capsys, 1, "evaluate", "one.npy", "--data", "elsewhere")


def test_compare_writes_a_report(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "two.npy", "--data", "real.npy", "--n", "256", "--json", "two/metrics.json"]) == 0
    pictures.save_grid("two/samples.png", faces(2).images[:64])
    command = ["compare", str(run), "one.npy", "two", "--data", "real.npy", "--n", "256", "--out", "report"]
    assert main(command) == 0
    assert "report/index.html" in capsys.readouterr().out
    found = json.loads(Path("report/results.json").read_text())["evaluations"]
    assert [e["subject"]["name"] for e in found] == [str(run), "one.npy", "two.npy"]
    assert "psnr" in found[0]["scores"] and "psnr" not in found[1]["scores"]
    page = Path("report/index.html").read_text()
    assert "one.npy" in page and "two.npy" in page
    assert "not an empty folder" in fails(capsys, 1, *command)


def test_compare_takes_as_many_of_each_as_the_smallest_set_has(capsys: pytest.CaptureFixture[str]) -> None:
    np.save("more.npy", faces(2).images[:400])
    assert main(["compare", "one.npy", "more.npy", "one.npy", "--data", "real.npy", "--out", "report"]) == 0
    assert "more.npy, 260 images" in capsys.readouterr().out
    found = json.loads(Path("report/results.json").read_text())["evaluations"]
    assert {e["scores"]["fd-colours"]["protocol"]["n"] for e in found} == {260}
    assert "holds 260 images" in fails(
        capsys, 2, "compare", "one.npy", "--data", "real.npy", "--n", "300", "--out", "r"
    )


def test_a_kept_result_shows_its_own_grid_only(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "two.npy", "--data", "real.npy", "--json", "two/metrics.json"]) == 0
    pictures.save_grid("two/samples.png", faces(2).images[:10])  # four rows of three, two places white
    assert np.array_equal(_read_saved(Path("two/metrics.json")).pictures["samples"], faces(2).images[:10])
    Path("two/other.json").write_text(Path("two/metrics.json").read_text())
    assert not _read_saved(Path("two/other.json")).pictures
    Image.new("RGB", (100, 101)).save("two/samples.png")
    assert not _read_saved(Path("two/metrics.json")).pictures
    Path("two/samples.png").write_text("no picture")
    assert not _read_saved(Path("two/metrics.json")).pictures
    Image.new("1", (20_000, 20_000)).save("two/samples.png")
    capsys.readouterr()
    assert not _read_saved(Path("two/metrics.json")).pictures
    assert capsys.readouterr().out.startswith("left out: two/samples.png: decompression bomb")


def test_settings_without_effect_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "leave out --root, --crop and --split" in fails(
        capsys, 2, "evaluate", "one.npy", "--data", "real.npy", "--split", "train"
    )
    assert "a model has its own size" in fails(capsys, 2, "evaluate", run, "--data", "toyfaces", "--size", "32")
    assert main(["evaluate", "one.npy", "--data", "real.npy", "--json", "one.json"]) == 0
    capsys.readouterr()
    assert "--data real.npy has no effect" in fails(
        capsys, 2, "compare", "one.json", "--data", "real.npy", "--out", "report"
    )


def test_damaged_run_folders_are_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "config.yaml").write_text("{")
    assert "config.yaml is not YAML" in fails(capsys, 1, "evaluate", run)
    (run / "config.yaml").write_text("")
    assert "is not a recipe" in fails(capsys, 1, "evaluate", run)
    (run / "config.yaml").write_text("data: celeba\nroot: nowhere\nfingerprint: known\n")
    assert "give --root" in fails(capsys, 1, "evaluate", run)
    (run / "config.yaml").write_text("data: real.npy\nfingerprint: known\n")
    (run / "metrics.jsonl").write_text('{"step": 7, "images": 56}\n{"step": 8, "ima')
    assert main(["evaluate", str(run), "--n", "256", "--json", "m.json"]) == 0
    assert json.loads(Path("m.json").read_text())["subject"]["training"] == {"images": 56, "steps": 7}


def test_compare_refuses_numbers_of_another_protocol(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "two.npy", "--data", "real.npy", "--json", "two.json"]) == 0
    capsys.readouterr()
    command = ["compare", "one.npy", "two.json", "--data", "real.npy", "--n", "256", "--out", "report"]
    assert main(command) == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert "cannot be compared" in line and "n: 260 and 256" in line
    assert not Path("report").exists()


def test_compare_leaves_out_runs_without_a_model(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("started", "other"):
        Path(name).mkdir()
        Path(name, "config.yaml").write_text("family: tiny\ndata: real.npy\nfingerprint: known\n")
    assert main(["compare", "one.npy", "started", "two.npy", "--data", "real.npy", "--out", "report"]) == 0
    said = capsys.readouterr()
    assert said.err == "started is left out: it has no model yet; --resume continues its training\n"
    assert [line for line in said.out.splitlines() if "images" in line] == [
        "1/2  one.npy, 260 images",
        "2/2  two.npy, 260 images",
    ]
    found = json.loads(Path("report/results.json").read_text())["evaluations"]
    assert [e["subject"]["name"] for e in found] == ["one.npy", "two.npy"]
    assert "genmodels compare one.npy two.npy --data" in Path("report/index.html").read_text()
    assert main(["compare", "started", "other", "--data", "real.npy", "--out", "nothing"]) == 1
    assert "none of these runs has a model yet" in capsys.readouterr().err
    assert not Path("nothing").exists()


def test_compare_checks_all_runs_before_it_measures_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "config.json").write_text("{")
    Tiny(TinyConfig(size=32)).save_pretrained("large")
    for wrong, reason in (
        (str(run), "is not JSON"),
        ("nowhere", "nowhere"),
        ("large", "one.npy has 16 px and large 32"),
    ):
        assert main(["compare", "one.npy", wrong, "--data", "real.npy", "--out", "report"]) == 1
        said = capsys.readouterr()
        assert reason in said.err and len(said.err.splitlines()) == 1
        assert "1/2" not in said.out
        assert not Path("report").exists()


def test_compare_learns_the_size_of_a_model_without_loading_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("safetensors.torch.load_file")
    monkeypatch.delattr("genmodels.load")
    assert _model_size(str(run)) == 16
    (run / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="model.safetensors: not the weights of this config"):
        _model_size(str(run))


@pytest.mark.parametrize("error", [RuntimeError("out of\nmemory"), KeyboardInterrupt()])
def test_a_run_that_fails_does_not_cost_compare_the_others(
    error: BaseException, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate(images: Images, *arguments: Any, **settings: Any) -> Evaluation:
        if len(images) == 261:
            raise error
        return evaluate_images(images, *arguments, **settings)

    monkeypatch.setattr("genmodels.evaluation.evaluate.evaluate_images", evaluate)
    np.save("bad.npy", faces(3).images[:261])
    monkeypatch.setattr("genmodels.evaluation.reference.spread", lambda images, n: images)
    command = ["compare", "one.npy", "bad.npy", "two.npy", "--data", "real.npy", "--out", "report"]
    stopped = isinstance(error, KeyboardInterrupt)
    assert main(command) == 1
    *notes, last = capsys.readouterr().err.splitlines()
    if stopped:
        assert (notes, last) == ([], "genmodels: error: interrupted")
    else:
        assert notes == ["bad.npy is left out: out of memory"]
        assert last.endswith("the report leaves out bad.npy, whose evaluation failed: out of memory")
    found = json.loads(Path("report/results.json").read_text())["evaluations"]
    assert [e["subject"]["name"] for e in found] == ["one.npy"] if stopped else ["one.npy", "two.npy"]


def test_a_failed_compare_leaves_no_partial_folder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(evaluations: Any, metrics: Any, folder: Path) -> None:
        folder.mkdir()
        (folder / "half.png").write_bytes(b"half")
        raise OSError("no space")

    monkeypatch.setattr("genmodels.evaluation.compare.write_figures", full)
    before = sorted(Path().iterdir())
    assert main(["compare", "one.npy", "--data", "real.npy", "--out", "report"]) == 1
    assert "no space" in capsys.readouterr().err
    assert sorted(Path().iterdir()) == before


def test_compare_replaces_only_a_report_and_only_with_force(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "one.npy", "--data", "real.npy", "--json", "one.json"]) == 0
    command = ["compare", "one.json", "--out", "report"]
    assert main(command) == 0
    capsys.readouterr()
    assert "replace that report with --force" in fails(capsys, 1, *command)
    Path("report/index.html").write_text("of an earlier report")
    assert main([*command, "--force"]) == 0
    assert "one.npy" in Path("report/index.html").read_text()
    capsys.readouterr()
    for mine in ("notes.txt", "figures/mine.png"):
        Path("report", mine).write_text("precious")
        assert "choose another --out" in fails(capsys, 1, *command, "--force")
        assert Path("report", mine).read_text() == "precious"
        Path("report", mine).unlink()
    Path("report/results.json").unlink()
    assert "is not an empty folder: choose another --out" in fails(capsys, 1, *command, "--force")
