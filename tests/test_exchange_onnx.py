"""Methods of models as ONNX files, traced and compiled modules, and as a web page."""

from __future__ import annotations

import hashlib
import json
import tarfile

import numpy as np
import onnx
import pytest
import torch

import genmodels
import genmodels.directions
from genmodels.cli import main
from genmodels.exchange import onnx as writing
from genmodels.exchange import runtime, web
from genmodels.exchange.methods import Methods, methods_of
from genmodels.exchange.onnx import TOLERANCE, export_program, export_to_onnx, run, to_onnx
from genmodels.gan import GAN, GANConfig
from genmodels.latent import Latent
from genmodels.saving import from_dict
from genmodels.types import Noise

TRANSFORMER = dict(width=16, depth=2, heads=2)
NETWORKS = dict(channels=(16, 24), encoder_blocks=(0, 1), decoder_blocks=(0, 1))
CONFIGS = {
    "vae": dict(size=32, latent_dim=8, mixture=2, **NETWORKS),
    "gan": dict(size=8, channels=(16, 8), blocks=1, group=8, latent_dim=8, principal=4),
    "dit": dict(
        size=8,
        patch=4,
        transformer=TRANSFORMER,
        gaussian=8,
        conditional_mean=True,
        process="meanflow",
        condition=dict(attributes=("Smiling", "Young"), classes=3),
    ),
    "kl": dict(size=16, channels=(8, 16), groups=4),
    "vqvae": dict(size=32, patch=4, codebook_size=32, code_dim=4, **NETWORKS),
    "autoregressive": dict(size=8, levels=16, transformer=TRANSFORMER),
    "unet": dict(size=8, channels=(16,), blocks=1, attention=(False,), head=8, groups=8),
}


def built(family: str, **changes):
    """A small model whose weights are all random, so that no layer returns zeros."""
    torch.manual_seed(0)
    kind = genmodels.family(family)
    model = kind(from_dict(kind.Config, CONFIGS[family] | changes, family))
    images = torch.rand(48, 3, model.config.size, model.config.size) * 2 - 1
    model.initialise([images])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
        model.eval().calibrate([images])
    return model


def rows(method, n: int) -> list[torch.Tensor]:
    """Inputs of n rows."""
    return [torch.cat([value] * n)[:n] for value in method.examples]


@pytest.mark.parametrize("family", ["vae", "gan", "dit"])
def test_methods_give_the_samples_of_the_same_noise(family):
    model = built(family)
    methods = methods_of(model).exported
    noise = Noise.for_images(5, range(3))
    drawn = {"vae": ["uniform", "normal"], "gan": ["latents"], "dit": ["normal"]}[family]
    draws = [noise.uniform() if name == "uniform" else noise.normal(*shape_of(model)) for name in drawn]
    with torch.no_grad():
        if family == "dit":
            assert [value.name for value in methods["sample"].inputs] == ["normal", "attributes", "labels"]
            assert methods["sample"].inputs[1].names == ("Smiling", "Young")
            given = torch.tensor([[1.0, -1.0]] * 3), torch.tensor([2] * 3)
            images = methods["sample"].module(*draws, *given)
            condition = {"Smiling": 1, "Young": -1, "label": 2}
        else:
            latents = methods["draw_latents"].module(*draws) if family == "vae" else draws[0]
            images, condition = methods["from_latents"].module(latents), None
    torch.testing.assert_close(images, model.generate(3, seed=5, condition=condition), rtol=0, atol=1e-6)
    assert images.std() > 0.1


def shape_of(model) -> tuple[int, ...]:
    return model.shape if model.can("trajectory") else (8,)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("vae", "draw_latents"),
        ("vae", "from_latents"),
        ("gan", "from_latents"),
        ("dit", "sample"),
        ("kl", "encode"),
        ("vqvae", "decode"),
    ],
)
def test_onnx_equals_torch_for_any_number_of_images(family, name, tmp_path):
    changes, options = {}, {}
    if family == "dit":
        changes, options = {"transformer": TRANSFORMER | {"depth": 1}}, {"steps": 1}
    method = methods_of(built(family, **changes), options).exported[name]
    path = tmp_path / "method.onnx"
    path.write_bytes(to_onnx(method))
    inputs = rows(method, 5)
    output = run(path, dict(zip([value.name for value in method.inputs], inputs, strict=True)))
    with torch.no_grad():
        expected = method.module(*inputs)
    assert np.abs(output - expected.numpy()).max() <= TOLERANCE
    assert output.shape == (5, *method.output.example.shape[1:])
    assert output.std() > 0.05


@pytest.mark.parametrize(("family", "name"), [("gan", "from_latents"), ("dit", "sample"), ("vqvae", "encode")])
def test_the_same_modules_are_traced_and_compiled(family, name):
    method = methods_of(built(family)).exported[name]
    inputs = rows(method, 3)
    with torch.no_grad():
        expected = method.module(*inputs)
        torch.testing.assert_close(export_program(method).module()(*inputs), expected)
        compiled = torch.compile(method.module, backend="aot_eager" if family == "gan" else "eager")
        torch.testing.assert_close(compiled(*inputs), expected)


def test_folder_describes_its_files(tmp_path, capsys):
    model = built("gan", principal=0)
    model.save_pretrained(tmp_path / "gan")
    assert main(["export", str(tmp_path / "gan"), str(tmp_path / "out"), "--to", "onnx"]) == 0
    assert "from_latents.onnx with model.json" in capsys.readouterr().out
    about = json.loads((tmp_path / "out" / "model.json").read_text())
    (name, file), *others = about["files"].items()
    assert (name, others, about["size"], about["kind"]) == ("from_latents.onnx", [], 8, "gan")
    assert file["inputs"][0]["shape"] == ["n", 8]
    assert file["outputs"] == [
        {"name": "images", "shape": ["n", 3, 8, 8], "type": "float32", "about": "RGB, from -1 (black) to 1 (white)"}
    ]
    with torch.no_grad():
        next(p for p in model.generator.parameters() if p.ndim > 1).add_(0.01)
    with pytest.raises(ValueError, match=r"from_latents.onnx differs from torch by"):
        writing.compare(methods_of(model).exported["from_latents"], tmp_path / "out" / "from_latents.onnx")
    assert main(["export", str(tmp_path / "gan"), str(tmp_path / "out"), "--to", "onnx"]) == 1
    assert "not an empty folder" in capsys.readouterr().err


def test_weights_of_half_precision_stay_half(tmp_path):
    method = methods_of(built("gan", channels=(32, 32), principal=0).half()).exported["from_latents"]
    (tmp_path / "file.onnx").write_bytes(content := to_onnx(method))
    writing.compare(method, tmp_path / "file.onnx")
    weights = [onnx.numpy_helper.to_array(weight) for weight in onnx.load_from_string(content).graph.initializer]
    large = [weight for weight in weights if weight.size >= writing.SMALL]
    assert sum(weight.size for weight in large) > 10_000
    assert {weight.dtype for weight in large} == {np.dtype(np.float16)}


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("autoregressive", {}, "a sample of this autoregressive needs more than 4 evaluations"),
        ("unet", {}, "a sample of this unet needs more than 4 evaluations"),
        ("unet", {"stps": 2}, "unknown sampling option 'stps'"),
    ],
)
def test_what_needs_many_evaluations_is_refused(family, options, message):
    with pytest.raises(ValueError, match=message):
        methods_of(built(family), options)
    if family == "unet":
        few = {"steps": 3, "solver": "euler"}
        without = methods_of(built(family), few)
        assert (list(without.exported), without.left_out) == (["sample"], {})
        with_text = methods_of(built(family, condition={"text": {"vocabulary": 9}}), few)
        assert (list(with_text.exported), list(with_text.left_out)) == (["sample"], ["text"])
        assert web.drawn_by(with_text).left_out["text"].startswith("prompts are not an input")


def test_a_prior_without_its_codec_and_a_missing_package_are_refused(tmp_path, monkeypatch):
    codec = built("kl", channels=(8, 8, 8))
    prior = GAN(GANConfig(size=16, latents=(4, 4, 4), channels=(16,), group=8, latent_dim=8)).eval()
    with pytest.raises(ValueError, match="a prior over a codec's latents"):
        methods_of(prior)
    method, z = methods_of(Latent.over(codec, prior)).exported["from_latents"], torch.randn(2, 8)
    with torch.no_grad():
        torch.testing.assert_close(method.module(z), codec.decode(prior.from_latents(z)))
    monkeypatch.setattr(writing, "find_spec", lambda name: None if name == "onnxruntime" else True)
    with pytest.raises(ValueError, match=r"needs onnxruntime: pip install 'genmodels\[onnx\]'"):
        export_to_onnx(built("gan"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- the page ----


def test_page_has_model_directions_and_runtime(tmp_path, monkeypatch):
    monkeypatch.setattr(web, "runtime_files", lambda path: dict.fromkeys(runtime.SHA256, b"runtime"))
    monkeypatch.setattr(writing, "to_onnx", lambda method: b"onnx")
    monkeypatch.setattr(writing, "compare", lambda method, path: None)
    model = built("gan", principal=0)
    said = web.export_to_web(model, tmp_path / "page")
    assert "python -m http.server" in said
    page = tmp_path / "page"
    assert {path.name for path in page.iterdir()} == {
        *("index.html", "page.js", "page.css", "model.json", "from_latents.onnx", "runtime")
    }
    assert {path.name for path in (page / "runtime").iterdir()} == set(runtime.SHA256)
    about = json.loads((page / "model.json").read_text())
    expected = genmodels.directions.principal_directions(model, 4)
    assert [entry["reach"] for entry in about["directions"]] == [3.0] * 4
    np.testing.assert_allclose([entry["vector"] for entry in about["directions"]], expected.numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "message"),
    [("kl", None), ("vqvae", "made from uniform"), ("unet", "more than 4 evaluations"), ("dit", None)],
)
def test_what_the_page_draws_with(family, message):
    model = built(family)
    if message is None:
        chosen = {"kl": ["draw_latents", "from_latents"], "dit": ["sample"]}[family]
        assert list(web.drawn_by(methods_of(model)).exported) == chosen
        return
    with pytest.raises(ValueError, match=message):
        web.drawn_by(methods_of(model))
    with pytest.raises(ValueError, match="no page for this model: why"):
        web.drawn_by(Methods(left_out={"sample": "why"}))


def test_runtime_is_checked_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("GENMODELS_CACHE", str(tmp_path / "cache"))
    content = {name: name.encode() for name in runtime.SHA256}
    folder = tmp_path / "dist"
    folder.mkdir()
    for name, data in content.items():
        (folder / name).write_bytes(data)
    with tarfile.open(tmp_path / "package.tgz", "w:gz") as archive:
        archive.add(folder, "package/dist")
    with pytest.raises(ValueError, match=r"is not that of onnxruntime-web 1.30.0 \(its checksum differs\)"):
        runtime.runtime_files(folder)
    for name, data in content.items():
        monkeypatch.setitem(runtime.SHA256, name, hashlib.sha256(data).hexdigest())
    assert runtime.runtime_files(folder) == runtime.runtime_files(tmp_path / "package.tgz") == content
    monkeypatch.setattr(runtime, "_download", lambda: dict(content))
    assert runtime.runtime_files() == content
    monkeypatch.undo()
    monkeypatch.setenv("GENMODELS_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(runtime.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="there is no npm to download it: install npm, or give its files with --run"):
        runtime.runtime_files()
    with pytest.raises(ValueError, match="has no ort.wasm.min.js"):
        runtime.runtime_files(tmp_path)
    with pytest.raises(ValueError, match="not an archive of npm pack"):
        runtime.runtime_files(folder / "ort.wasm.min.js")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--to", "onnx", "--attributes", "Smiling"], "--attributes has no effect with --to onnx"),
        (["--steps", "2"], "--options has no effect with --to diffusers: it belongs to --to onnx or web"),
        (["--to", "web", "--root", "."], "--data and --root have no effect without --attributes"),
    ],
)
def test_flags_without_effect_are_refused(flags, message, tmp_path, capsys):
    assert main(["export", str(tmp_path), str(tmp_path / "out"), *flags]) == 2
    assert message in capsys.readouterr().err
