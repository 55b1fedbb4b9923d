"""Configs and weights of saved models are checked before they are used: sizes, types and numbers."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_contract import SMALL, kind

import genmodels
from genmodels import weights
from genmodels.latent import Latent
from genmodels.saving import from_dict
from genmodels.training.checkpoint import load_checkpoint
from genmodels.vae import VAE, VAEConfig
from genmodels.weights import build, read_tensors

VALUES: list[Any] = [None, "", "x", -1, 0, 1, 3, 2**20, 2**31, 2**63 - 1, 10**400, 1e9, 0.5, 1e308, [], {}, True]
VALUES += [[1], [1, 2**63 - 1], [1] * 1000, ["a"], {"a": {"b": 1}}, [None]]


def make(name: str) -> Any:
    family = genmodels.family(kind(name))
    torch.manual_seed(0)
    return family(from_dict(family.Config, SMALL[name]))  # type: ignore[attr-defined]


def saved(name: str, folder: Path) -> Path:
    make(name).save_pretrained(folder)
    return folder


def change(folder: Path, name: str, tensor: torch.Tensor) -> None:
    file = folder / "model.safetensors"
    save_file(load_file(file) | {name: tensor}, file)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", SMALL)
def test_weights_that_are_not_finite_are_refused(name: str, bad: float, tmp_path: Path) -> None:
    folder = saved(name, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    floating = [name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()]
    for tensor in (floating[0], floating[-1]):
        change(folder, tensor, torch.full_like(tensors[tensor], bad))
        with pytest.raises(ValueError, match=f"model.safetensors: .* numbers of {tensor} are NaN or infinite"):
            genmodels.load(folder)
        change(folder, tensor, tensors[tensor])
    genmodels.load(folder)


def test_a_mask_of_infinities_is_loaded_and_nan_is_refused(tmp_path: Path) -> None:
    class Masked(VAE):
        def __init__(self, config: VAEConfig):
            super().__init__(config)
            self.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1))

    model = Masked(from_dict(VAEConfig, SMALL["vae"]))
    model.save_pretrained(tmp_path)
    assert torch.equal(Masked.from_pretrained(tmp_path).mask, model.mask)
    change(tmp_path, "mask", torch.full((2, 2), float("nan")))
    with pytest.raises(ValueError, match="4 of 4 numbers of mask are NaN"):
        Masked.from_pretrained(tmp_path)


def test_a_checkpoint_that_is_not_finite_says_so(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    (tmp_path / "state.json").write_text(json.dumps({"format": 2, "identity": {}, "state": {}, "files": {}}))
    save_file(tensors | {"bias": torch.full((2,), float("nan"))}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors: 2 of 2 numbers of bias are NaN.* use an earlier model$"):
        load_checkpoint(tmp_path, {}, model, model)


@pytest.mark.parametrize("name", ["vae", "unet", "latent:unet"])
def test_tensors_of_another_type_are_not_converted(name: str, tmp_path: Path) -> None:
    folder = saved(name, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    first = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    for type_ in (torch.bfloat16, torch.float64, torch.int64):
        change(folder, first, tensors[first].to(type_))
        with pytest.raises(
            ValueError, match=f"{first} is {str(type_)[6:]}.* is float32|is float32.*is {str(type_)[6:]}"
        ):
            genmodels.load(folder)


def test_flags_of_another_type_are_not_converted(tmp_path: Path) -> None:
    folder = saved("vae", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name, flag = next((name, tensor) for name, tensor in tensors.items() if tensor.dtype == torch.bool)
    change(folder, name, flag.float())
    with pytest.raises(ValueError, match=f"{name} is float32, the model's is bool"):
        genmodels.load(folder)


@pytest.mark.parametrize("name", SMALL)
def test_a_model_in_half_precision_comes_back_as_it_was_saved(name: str, tmp_path: Path) -> None:
    model = make(name).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    again = genmodels.load(tmp_path)
    expected, loaded = model.state_dict(), again.state_dict()
    assert {n: t.dtype for n, t in loaded.items()} == {n: t.dtype for n, t in expected.items()}
    assert all(torch.equal(tensor, loaded[n]) for n, tensor in expected.items())


def test_a_codec_in_half_precision_and_its_prior_come_back_as_they_were_saved(tmp_path: Path) -> None:
    model: Latent = make("latent:unet over vectors")
    model.codec.to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    loaded = genmodels.load(tmp_path)
    assert {p.dtype for p in loaded.codec.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in loaded.prior.parameters()} == {torch.float32}


def test_weights_of_another_model_are_named_with_their_number(tmp_path: Path) -> None:
    folder = saved("dit", tmp_path)
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="config.json: .* but its weights are 1 tensors of 1 numbers|it lacks"):
        genmodels.load(folder)


def test_a_message_of_torch_is_short(tmp_path: Path) -> None:
    folder = saved("vae", tmp_path)
    header = json.loads((folder / "config.json").read_text())
    header["model"] |= {"size": 1 << 40, "principal": False}
    (folder / "config.json").write_text(json.dumps(header))
    with pytest.raises(ValueError, match="config.json") as error:
        genmodels.load(folder)
    assert len(str(error.value).removeprefix(str(folder))) < 250 and "frame #" not in str(error.value)


def test_files_that_are_not_safetensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="/dev/zero is not a regular file"):
        read_tensors(Path("/dev/zero"))
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "absent")
    (tmp_path / "a").write_bytes(b"\xff" * 64)
    with pytest.raises(ValueError, match="a: not the weights"):
        read_tensors(tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("vae", {"encoder_blocks": [1, 2**63 - 1]}),
        ("vae", {"latent_dim": 2**40}),
        ("vqvae", {"residual": 2**63 - 1}),
        ("vqvae", {"codebook_size": 2**50}),
        ("autoregressive", {"transformer": {"width": 16, "depth": 2**63 - 1, "heads": 2}}),
        ("dit", {"latents": [4, 1, 2**40], "patch": 1}),
        ("unet", {"channels": [16, 2**40]}),
        ("gan", {"blocks": 2**63 - 1}),
    ],
)
def test_a_config_cannot_cause_endless_work(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    folder = saved(name, tmp_path)
    file = folder / "config.json"
    header = json.loads(file.read_text())
    header["model"] |= changes
    file.write_text(json.dumps(header))
    with pytest.raises(ValueError, match=r"config\.json|config "):
        genmodels.load(folder)


def test_a_config_for_training_cannot_cause_endless_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "MOST_TENSORS", 500)
    for changes in ({"encoder_blocks": (1, 1, 2**63 - 1)}, {"latent_dim": 2**50}):
        config = VAEConfig(**changes)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"config\.yaml: it describes a model of more than|config\.yaml: "):
            build(lambda config=config: genmodels.VAE(config), "config.yaml")  # type: ignore[misc]


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*place, key))


def changed(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    """Return `value` with `new` at `place`; "delete" removes what is there."""
    if not place:
        return new
    value = copy.deepcopy(value)
    inner = value
    for key in place[:-1]:
        inner = inner[key]
    if new == "delete":
        del inner[place[-1]]
    else:
        inner[place[-1]] = new
    return value


@pytest.mark.parametrize("name", SMALL)
def test_any_change_of_a_config_leads_to_a_model_or_one_line(name: str, tmp_path: Path) -> None:
    folder = saved(name, tmp_path)
    file = folder / "config.json"
    header = json.loads(file.read_text())
    dice = random.Random(name)
    cases = [(place, value) for place in places(header) for value in ("delete", *VALUES)]
    refusals = []
    for place, value in dice.sample(cases, 40):
        file.write_text(json.dumps(changed(header, place, value)))
        try:
            genmodels.load(folder)
        except ValueError as error:
            refusals.append(str(error))
    assert len(refusals) > 20
    assert not [text for text in refusals if "\n" in text or len(text) > 1000]
