"""The page without a browser: what it offers, the command lines it shows, and what it refuses."""

from __future__ import annotations

import re
import shlex
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio
import numpy as np
import pytest
from app_models import SIZE, empty_png, save_models
from PIL import Image

from genmodels import pictures, sampling
from genmodels.app import jobs, server, uploads, work
from genmodels.app.controls import Control, chosen_options, condition_values, flags, option_controls, whole_number
from genmodels.app.page import page
from genmodels.app.results import FILES, fill, leave, session_folder
from genmodels.app.server import _server, listen
from genmodels.app.uploads import Picture
from genmodels.app.work import Result, Served
from genmodels.cli import main
from genmodels.cli.app import served_model
from genmodels.stopping import StoppedError
from genmodels.variations import variations


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Served]:
    """The small models, as the page has them."""
    return {name: served_model(str(path)) for name, path in save_models(tmp_path_factory.mktemp("models")).items()}


def drawing(side: int = 20) -> Image.Image:
    """Draw a picture that is not square and has no symmetry."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side + 8, 3), np.uint8))


def by_name(controls: list[Control]) -> dict[str, Control]:
    return {control.name: control for control in controls}


def test_controls_are_those_of_the_options_and_the_condition(served: dict[str, Served]) -> None:
    unet, text, vae = (option_controls(served[name].model) for name in ("unet", "text", "vae"))
    assert [control.name for control in vae] == ["temperature", "latents"]
    assert by_name(vae)["latents"].choices == ("mixture", "prior")
    assert by_name(vae)["temperature"].about.startswith("Factor on the standard deviation")
    assert [control.name for control in unet][:3] == ["temperature", "guidance", "steps"]
    # A prompt to avoid needs text, a path is no control, and only inpainting resamples.
    assert not {"negative", "guide", "resample"} & set(by_name(unet))
    assert "negative" in by_name(text)
    assert by_name(option_controls(served["unet"].model, "inpaint"))["resample"].default == 3
    # Without a condition there is nothing to guide towards.
    plain = served["vae"].model
    assert plain.conditions.is_empty
    assert "schedule" in by_name(unet) and by_name(unet)["schedule"].choices[0] is None


def test_values_of_the_page_become_options_and_flags(served: dict[str, Served]) -> None:
    controls = [c for c in option_controls(served["unet"].model) if c.name in ("guidance", "steps", "guidance_high")]
    assert [control.name for control in controls] == ["guidance", "steps", "guidance_high"]
    # The browser sends floats for whole numbers, and rounding errors of its sliders.
    assert chosen_options(controls, [2.3000000000000003, 12.0, None]) == {"guidance": 2.3, "steps": 12}
    assert chosen_options(controls, [1, 20, 4]) == {"guidance_high": 4.0}
    (low,) = (c for c in option_controls(served["unet"].model) if c.name == "guidance_low")
    assert chosen_options([low], [None]) == chosen_options([low], [""]) == {}, (
        "a number that was deleted is the default"
    )
    with pytest.raises(ValueError, match="Guidance high must be a number, got 'x'"):
        chosen_options(controls, [1, 20, "x"])
    with pytest.raises(ValueError, match="Steps must be from -9,0"):
        chosen_options(controls, [1, 1e300, 4])
    assert whole_number(-(2**53)) == -(2**53) and whole_number(12.0) == 12
    for number in (2**53 + 2, -1e300, 10**400, float("inf")):
        with pytest.raises(ValueError, match="the seed must be from -9,007,199,254,740,992 to 9,007,199,254,740,992"):
            whole_number(number)
    for number in (float("nan"), 0.5, None):
        with pytest.raises(ValueError, match="n must be a whole number, got"):
            whole_number(number, "n")
    assert flags({"seed": -3, "top_k": 5, "negative": "", "images": ["a b", "c"]}) == [
        *("--seed=-3", "--top-k", "5", "--images", "a b", "c")
    ]
    assert condition_values(["Smiling"], ["Male"], "", " a man ") == {"Smiling": "yes", "Male": "no", "prompt": "a man"}
    with pytest.raises(ValueError, match="Smiling is chosen both as present and as absent"):
        condition_values(["Smiling"], ["Smiling"])


def results(served: dict[str, Served], face: Picture, painted: np.ndarray) -> dict[str, Result]:
    """Compute a result of every kind whose command draws images."""
    vae, unet, text = served["vae"], served["unet"], served["text"]
    sample = uploads.sampled(unet.name, unet.model, 5)
    condition = {"Smiling": "yes", "label": "sea lion"}
    quick = {"steps": 3, "guidance": 2.5}
    return {
        "sample": work.sample(vae, 5, 7, {}, {"temperature": 0.7, "latents": "prior"}),
        "condition": work.sample(unet, 3, -1, condition, quick),
        "prompt": work.sample(text, 2, 1, {"prompt": "an old man's face"}, {**quick, "negative": "-a woman"}),
        "vary by edit": work.vary(unet, sample, 3, 0.6, 2, condition, quick),
        "vary by latents": work.vary(vae, face, 3, 0.6, 2, {}, {}),
        "reconstruct": work.reconstruct(vae, face),
        "interpolate": work.interpolate(vae, 3, 4, 6, {"temperature": 0.5}),
        "interpolate prompts": work.interpolate(text, -3, 4, 3, quick, ["a man ", "an old man's face"]),
        "morph": work.morph(vae, face, uploads.sampled(vae.name, vae.model, 2), 5, {}),
        "edit": work.edit(unet, face, 0.45, 3, condition, quick),
        "inpaint": work.inpaint(unet, face, painted, 0.5, 2, 4, condition, {**quick, "resample": 2}),
        "inpaint rows": work.inpaint(unet, face, None, 0.25, 2, 4, {}, quick),
        "trajectory": work.trajectory(unet, 2, 1, 3, condition, quick),
        "retrieve": work.retrieve(served["clip"], "a man's face", 10),
    }


def test_commands_make_the_same_images(
    served: dict[str, Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    drawing().save("my face.png")
    face = uploads.uploaded("my face.png", SIZE)
    painted = np.zeros((SIZE, SIZE), bool)
    painted[3:9, 5:12] = True
    for title, result in results(served, face, painted).items():
        for name, picture in result.files.items():
            Image.fromarray(picture).save(name)
        for line in result.command.splitlines():
            words = shlex.split(line)
            assert words[0] == "genmodels"
            assert main([*words[1:], "--force"] if "--out" in words and not words[-1].endswith("/") else words[1:]) == 0
        real = title in ("reconstruct", "retrieve")
        with Image.open(result.out) as picture:
            assert ("XML:com.adobe.xmp" in picture.info) == bool(result.kind) == (not real), title
            np.testing.assert_array_equal(np.asarray(picture), np.asarray(result.picture()), err_msg=title)
        assert len(np.unique(result.images, axis=0)) == len(result.images) or title == "trajectory", title
        shutil.rmtree("seed5", ignore_errors=True)
        shutil.rmtree("seed2", ignore_errors=True)
        Path(result.out).unlink()


def test_every_picture_of_a_result_is_marked_if_it_is_generated(served: dict[str, Served], tmp_path: Path) -> None:
    def marked(path: Path) -> bool:
        with Image.open(path) as picture:
            return "trainedAlgorithmicMedia" in picture.info.get("XML:com.adobe.xmp", "")

    drawing().save(tmp_path / "face.png")
    face, unet = uploads.uploaded(str(tmp_path / "face.png"), SIZE), served["unet"]
    sample, quick = uploads.sampled(unet.name, unet.model, 5), {"steps": 2}
    for result, marks in (
        (work.inpaint(unet, face, None, 0.5, 2, 4, {}, quick), [False, False, True, True]),  # two are the visitor's
        (work.inpaint(unet, sample, None, 0.5, 1, 4, {}, quick), [True] * 3),
        (work.vary(unet, face, 2, 0.5, 0, {}, quick), [False, True, True]),
        (work.edit(unet, face, 0.5, 0, {}, quick), [False, True]),
        (work.trajectory(unet, 1, 0, 2, {}, quick), [True] * 4),
        (work.reconstruct(served["vae"], face), [False] * 2),
    ):
        gallery, frames, frame, rows = fill(result, ("gallery", "frames", "frame", "rows"), tmp_path / "session")
        assert [caption for _, caption in gallery] == result.captions and [path for path, _ in gallery] == frames
        assert [marked(path) for path in frames] == marks
        np.testing.assert_array_equal([np.asarray(Image.open(path)) for path in frames], result.images)
        assert frame in frames and marked(rows) == marks[-1] == marked(tmp_path / "session" / result.out)
        with Image.open(tmp_path / "session" / result.out) as picture, Image.open(rows) as larger:
            np.testing.assert_array_equal(np.asarray(picture), np.asarray(result.picture()))
            np.testing.assert_array_equal(np.asarray(larger.resize(picture.size, 0)), np.asarray(picture))


def test_directions_are_added_up_and_their_command_agrees(
    served: dict[str, Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("genmodels.cli.directions.ENOUGH", 500)
    vae = served["vae"]
    assert set(work.DIRECTIONS) <= set(vae.attributes)
    amounts = dict.fromkeys(work.DIRECTIONS, 0.0) | {"Smiling": 1.5, "Male": -2.0}
    result = work.change(vae, None, 3, amounts)
    assert result.command.endswith("--n 1 --seed 3 --change Smiling=1.5,Male=-2 --out directions.png")
    assert main(shlex.split(result.command)[1:]) == 0
    pictures.save_grid("expected.png", result.images, 2)
    np.testing.assert_array_equal(np.asarray(Image.open("directions.png")), np.asarray(Image.open("expected.png")))
    before, after = result.images.astype(int)
    assert abs(before - after).max() > 0
    assert main(["traverse", vae.name, "--change", "Smiling=much", "--out", "no.png"]) == 2
    assert main(["traverse", vae.name, "--change", "Smiling=1", "--reach", "3", "--out", "no.png"]) == 2


def test_variations_end_at_samples_or_are_edits(served: dict[str, Served]) -> None:
    faces = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    vae, unet = served["vae"].model, served["unet"].model
    made = variations(vae, faces, 2, 1.0, seed=3, temperature=0.5)  # nothing of the images is left
    assert made.shape == (2, 2, SIZE, SIZE, 3)
    samples = sampling.sample(vae, 4, 3, temperature=0.5, progress=False)
    np.testing.assert_allclose(made.reshape(samples.shape), samples, atol=1)
    near = variations(vae, faces, 2, 0.01, seed=3).astype(int)
    assert abs(near - sampling.reconstruct(vae, faces)[:, None]).max() <= 4
    edits = sampling.edit(unet, faces.repeat(2, 0), 0.5, 3, {"Male": 1}, steps=2)
    np.testing.assert_array_equal(variations(unet, faces, 2, 0.5, 3, {"Male": 1}, steps=2).reshape(edits.shape), edits)


def test_uploads_are_limited_and_named_without_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(ValueError) as error:
            uploads.uploaded(str(path), SIZE)
        assert str(tmp_path) not in str(error.value)
        return str(error.value)

    text = tmp_path / "face.png"
    text.write_text("not a picture\n")
    assert refused(text) == "face.png: not an image of a known format"
    huge = tmp_path / "huge.png"
    huge.write_bytes(empty_png(30_000))
    assert refused(huge) == "huge.png: decompression bomb: it has more than 89,478,485 pixels"
    small = tmp_path / "small.png"
    drawing(12).save(small)
    assert "small.png: smaller than the size" in refused(small)
    monkeypatch.setattr(uploads, "LARGEST_UPLOAD", 100)
    assert "small.png: larger than 0 MB" in refused(small)
    with pytest.raises(ValueError, match="there is no image yet"):
        uploads.uploaded(None, SIZE)


def test_painted_pixels_are_those_that_are_mostly_covered() -> None:
    layer = np.zeros((4 * SIZE, 4 * SIZE, 4), np.uint8)
    layer[8:16, 4:11, 3] = 255  # rows 2 and 3; column 1, and three quarters of column 2
    region = uploads.painted([layer, np.zeros_like(layer)], SIZE)
    assert region is not None
    expected = np.zeros((SIZE, SIZE), bool)
    expected[2:4, 1:3] = True
    np.testing.assert_array_equal(region, expected)
    assert uploads.painted([np.zeros_like(layer)], SIZE) is None
    assert uploads.painted([], SIZE) is None


def test_what_a_model_cannot_do_is_refused(served: dict[str, Served]) -> None:
    face = Picture(np.array(drawing())[:SIZE, :SIZE], "face.png")
    with pytest.raises(ValueError, match="a prompt was given, and this model was trained without text"):
        work.sample(served["unet"], 1, 0, {"prompt": "a man"}, {})
    for prompts, message in ((["a man", " "], "needs both"), (["a man", "-a"], "'-a' begins with a dash")):
        with pytest.raises(ValueError, match=message):
            work.interpolate(served["text"], 1, 2, 3, {"steps": 2}, prompts)
    with pytest.raises(ValueError, match="the sentence is empty"):
        work.retrieve(served["clip"], "  ", 3)
    with pytest.raises(ValueError, match="vary images without a condition|without attributes"):
        work.vary(served["vae"], face, 1, 0.5, 0, {"Smiling": "yes"}, {})
    assert main(["variations", served["clip"].name, "face.png"]) == 1


def test_an_answer_is_that_of_the_command(served: dict[str, Served], tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    drawing().save("my face.png")
    result = work.ask(served["llava"], uploads.uploaded("my face.png", SIZE), "Is this person smiling?")
    words = shlex.split(result.command)
    assert main(words[1:]) == 0 and words[1] == "ask"
    assert capsys.readouterr().out.strip() == result.text.strip()
    with pytest.raises(ValueError, match="the question is empty"):
        work.ask(served["llava"], uploads.uploaded("my face.png", SIZE), "")


def test_jobs_are_cancelled_by_session(served: dict[str, Served]) -> None:
    model = served["unet"].model
    blocks: list[int] = []
    with jobs.job("visitor", [model], blocks.append):
        assert not jobs.cancel("somebody else")
        work.sample(served["unet"], 1, 0, {}, {"steps": 2})
    assert not jobs.cancel("visitor")  # it is over
    assert blocks and blocks[0] == 1
    with jobs.job("visitor", [model], blocks.append):
        assert jobs.cancel("visitor")
        with pytest.raises(StoppedError):
            work.sample(served["unet"], 1, 0, {}, {"steps": 2})
    # The next job of the same visitor runs, and no hook is left on the model.
    with jobs.job("visitor", [model], blocks.append):
        work.sample(served["unet"], 1, 0, {}, {"steps": 2})
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_session_names_no_other_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    for name in (str(tmp_path), "..", "../..", "\ud800"):
        visitor = gradio.Request(session_hash=name)
        folder = session_folder(visitor)
        assert folder.parent == Path(FILES.name) and folder.resolve().parent == Path(FILES.name).resolve()
        folder.mkdir()
        leave(visitor)
        assert not folder.exists()
    assert (tmp_path / "mine").exists() and Path(FILES.name).exists()


def test_a_deleted_model_is_still_served(served: dict[str, Served], tmp_path: Path) -> None:
    shutil.copytree(served["vae"].name, tmp_path / "vae")
    copy = served_model(str(tmp_path / "vae"))
    before = work.sample(copy, 2, 0, {}, {}).images
    assert not copy.is_deleted
    shutil.rmtree(tmp_path / "vae")
    assert copy.is_deleted
    np.testing.assert_array_equal(work.sample(copy, 2, 0, {}, {}).images, before)


def test_no_model_takes_an_address_of_the_server(served: dict[str, Served]) -> None:
    names = ["first", "config", "runs/Assets", "static/", "login", "docs", "runs/vae.2"]
    blocks = page([replace(served["clip"], name=name) for name in names])
    paths = [path for path, *_ in blocks.pages]
    assert paths == ["", "model-config", "runs-assets", "model-static", "model-login", "docs", "runs-vae-2"]
    with listen("127.0.0.1", 7960) as bound:
        application = _server([served["clip"]], bound).config.app
    assert [getattr(route, "path", None) for route in application.routes] == [""]  # no /docs


def test_a_busy_port_is_passed_over_and_named(
    served: dict[str, Served], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with listen("127.0.0.1", port) as bound:
            assert bound.getsockname()[0] == "127.0.0.1"
            assert port < bound.getsockname()[1] < port + 100
            with listen("127.0.0.1", bound.getsockname()[1]) as third:  # before either of them serves
                assert third.getsockname()[1] > bound.getsockname()[1]
        monkeypatch.setattr(
            server, "_server", lambda served, bound: SimpleNamespace(run=lambda sockets: sockets[0].close())
        )
        server.serve([served["clip"]], "127.0.0.1", port)
        busy, ready = capsys.readouterr().out.splitlines()
        chosen = re.fullmatch(rf"port {port} is busy: using (\d+)", busy)[1]
        assert f"clip on http://127.0.0.1:{chosen}/ (Ctrl+C ends it)" in ready
    with pytest.raises(ValueError, match="--host 192.0.2.1: "):
        listen("192.0.2.1", 7860)


def test_the_command_refuses_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["app", str(tmp_path)]) == 1
    assert main(["app", "--port", "70000"]) == 2
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["app", str(tmp_path)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("genmodels: error: ") for line in lines)
    assert "config.json" in lines[0]
    assert "--port must be from 1 to 65535, got 70000" in lines[1]
    assert 'pip install "genmodels[app]"' in lines[2]
