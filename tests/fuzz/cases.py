"""The cases: which input is damaged, how, and the command that reads it. All follow from the seed."""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from fuzz.binary import MUTATIONS
from fuzz.originals import FAST, MODELS, Originals, reseal
from fuzz.text import bytewise

TINY = "--n 1 --batch-size 1"
PACK = "data pack folder --size 16"
COLUMNS = "data pack huggingface --size 16 --text-column text --out out"
PACKED = (
    f"train vae --data pack --size 16 --output new {FAST} "
    "--model.channels 8 --model.encoder-blocks 1 --model.decoder-blocks 1"
)
OVER_CODEC = (
    f"train dit --codec model --data pack --output new --size 16 {FAST} --model.patch 1 "
    "--model.transformer.width 16 --model.transformer.depth 1 --model.transformer.heads 2 --model.gaussian 8"
)
CONFIG = f"train {{source}} --config run/config.yaml --output new {FAST}"
CONTINUE = f"train {{source}} --config run/config.yaml --output run --resume {FAST.replace('--steps 1', '--steps 3')}"
MODEL = ("info model", *["sample model --out o.png " + TINY] * 2, "export model out")
"""Commands on models. The name of the source is put in place of {source}, that of its copy of {input}."""
OWN_NAMES = (
    *("checkpoints", "samples", "tensorboard", "config.json", "model.safetensors", "metrics.jsonl", "README.md"),
    *(".export.partial", ".config.partial", ".metrics.partial", "metrics.partial", ".lock", ".config.partial.yaml"),
    *(".model.partial.safetensors", "checkpoints/step_00000003", "checkpoints/.step_00000003.partial"),
    *("samples/step_00000003.png", ".config.partial.json", ".README.partial.md", ".metrics.partial.jsonl"),
)
"""Names in a run folder that a run writes, or has written, and that may be planted as links."""


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        share: number of its cases among 5,000.
        sources: inputs of `Originals`, one of which is copied into the folder of the case.
        name: name that it has there.
        files: patterns of the files in it that are damaged; "" for the input itself.
        commands: command lines, one of which reads it.
        others: inputs that the commands need besides, and the names that they have in the folder.
        links: names in the input that may be planted as links to a folder or file elsewhere.
        misplaced: fraction of cases in which the file is replaced by a folder, a pipe or a link.
    """

    share: int
    sources: tuple[str, ...]
    name: str
    files: tuple[str, ...]
    commands: tuple[str, ...]
    others: dict[str, str] = field(default_factory=dict)
    links: tuple[str, ...] = ()
    misplaced: float = 0.1


def _named(folder: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}" for name in names)


KINDS: dict[str, Kind] = {
    "model config": Kind(750, _named("models", *MODELS), "model", ("config.json",), MODEL),
    "model weights": Kind(400, _named("models", *MODELS), "model", ("model.safetensors",), MODEL),
    "model used": Kind(
        200,
        _named("models", "vae", "ae", "vqvae", "autoregressive", "latent", "unet"),
        "model",
        ("config.json", "model.safetensors"),
        (
            "reconstruct model faces/00.png --out o.png",
            "inpaint model faces/00.png --n 1 --out o.png",
            "interpolate model --frames 2 --out o.png",
            "edit model faces/00.png --out o.png",
            OVER_CODEC,
        ),
        {"faces": "faces", "pack": "pack"},
    ),
    "recipe": Kind(
        500,
        _named("runs", "vae", "gan", "dit"),
        "run",
        ("config.yaml",),
        ("info run", "evaluate run --n 256", CONFIG, CONFIG, CONTINUE),
    ),
    "checkpoint": Kind(
        400,
        _named("runs", "vae", "gan"),
        "run",
        ("checkpoints/*/state.json", "checkpoints/step_00000002/*", "metrics.jsonl"),
        (CONTINUE, CONTINUE, CONTINUE, "average run out"),
        links=OWN_NAMES,
        misplaced=0.3,
    ),
    "metrics": Kind(200, ("runs/vae",), "run", ("metrics.jsonl",), ("info run", CONTINUE)),
    "pack": Kind(
        500,
        ("pack", "encoded"),
        "pack",
        ("manifest.json", "*.npy", "*.bin", "checked"),
        ("data show pack --out o.png", "data export pack --out o.zip", PACKED, f"{PACK} --root faces --out pack"),
        {"faces": "faces"},
    ),
    "part": Kind(
        100,
        ("parts/1",),
        "part",
        ("manifest.json", "*.npy", "*.bin"),
        ("data join out part other", "data join out other part"),
        {"parts/2": "other"},
    ),
    "journal": Kind(
        150,
        ("partial",),
        "pack",
        ("progress.jsonl", "images.partial"),
        (f"{PACK} --root faces --out pack",),
        {"faces": "faces"},
    ),
    "table": Kind(350, ("faces",), "faces", ("*.csv",), (f"{PACK} --root faces --out out",)),
    "celeba": Kind(200, ("celeba",), "celeba", ("*.txt",), ("data pack celeba --root celeba --out out --size 16",)),
    "zip": Kind(
        300,
        ("faces.zip",),
        "",
        ("",),
        (f"{PACK} --root {{input}} --out out", "evaluate {input} --data x.npy"),
        {"images/x.npy": "x.npy"},
    ),
    "array": Kind(
        200,
        _named("images", "y.npy", "y.npz"),
        "",
        ("",),
        ("evaluate {input} --data x.npy", "evaluate x.npy --data {input}"),
        {"images/x.npy": "x.npy"},
    ),
    "picture": Kind(
        250,
        _named("pictures", "a.png", "b.jpg", "c.webp", "d.tif", "e.gif", "f.bmp", "alpha.png", "mask.png"),
        "",
        ("",),
        (
            "reconstruct model {input} --out o.png",
            "inpaint prior {input} --n 1 --out o.png",
            "inpaint prior ok.png --mask {input} --n 1 --out o.png",
        ),
        {"models/vae": "model", "models/unet": "prior", "pictures/g.png": "ok.png"},
    ),
    "cifar": Kind(150, ("cifar",), "cifar", ("*/*",), ("data pack cifar10 --root cifar --out out",)),
    "mnist": Kind(100, ("mnist",), "mnist", ("*/*/*",), ("data pack mnist --root mnist --out out",)),
    "columns": Kind(
        200,
        _named("columns", "a.parquet", "a.arrow"),
        "",
        ("",),
        (f"{COLUMNS} --root {{input}}",),
    ),
    "save_to_disk": Kind(100, ("saved",), "saved", ("*.json", "*/*"), (f"{COLUMNS} --root saved",)),
    "shard": Kind(250, ("shards/a.tar",), "", ("",), ("data pack webdataset --root {input} --out out --size 16",)),
    "pictures": Kind(150, ("faces",), "faces", ("*.png", "*.jpg", "*.webp"), (f"{PACK} --root faces --out out",)),
    "results": Kind(
        200,
        ("results",),
        "results",
        ("*.json", "metrics.json", "samples.png"),
        ("compare results/metrics.json results/other.json --out out", "compare results --out out"),
    ),
    "cache": Kind(
        200,
        ("cache",),
        "cache",
        ("features/*/*", "latents-*/*"),
        ("evaluate x.npy --data other.npy --json o.json", CONFIG.replace("{source}", "dit")),
        {"images/x.npy": "x.npy", "images/other.npy": "other.npy", "runs/dit": "run"},
    ),
    "diffusers": Kind(
        400,
        _named("diffusers", "unet", "ldm", "dit", "ddpm"),
        "model",
        ("*.json", "*/*.json", "*/*.safetensors"),
        ("import model out", "info model", "sample model --out o.png --steps 1 " + TINY),
    ),
    "diffusers codec": Kind(
        150,
        _named("diffusers", "kl", "vq"),
        "model",
        ("config.json", "*.safetensors"),
        (OVER_CODEC, "info model"),
        {"pack": "pack"},
    ),
}
"""Kinds of input by name."""


@dataclass(frozen=True)
class Case:
    """One case, prepared in its folder.

    Attributes:
        kind: a name in KINDS.
        arguments: the command line.
        damaged: the damaged file, relative to the folder.
        done: what was done to it.
    """

    kind: str
    arguments: list[str]
    damaged: str
    done: str


def kind_of(seed: int, number: int) -> str:
    """Return the kind of case `number`."""
    rng = random.Random(f"{seed} {number}")
    return rng.choices(list(KINDS), [kind.share for kind in KINDS.values()])[0]


def prepare(originals: Originals, seed: int, number: int, folder: Path, canary: Path) -> Case:
    """Write the input of case `number` of a seed into a new folder and damage it."""
    name = kind_of(seed, number)
    kind, rng = KINDS[name], random.Random(f"{seed} {number} case")
    folder.mkdir()
    source = rng.choice(kind.sources)
    for made, target in {source: kind.name or Path(source).name, **kind.others}.items():
        _copy(originals.get(made), folder / target)
    target = folder / (kind.name or Path(source).name)
    files = sorted(
        {file for pattern in kind.files for file in target.glob(pattern)} if kind.files != ("",) else [target]
    )
    file = rng.choice(files)
    relative = str(file.relative_to(folder))
    command = rng.choice(kind.commands).replace("{input}", target.name).replace("{source}", Path(source).name)
    if rng.random() < kind.misplaced:
        if kind.links and rng.random() < 0.7:
            relative = f"{kind.name}/{rng.choice(kind.links)}"
            done = _plant(rng, folder / relative, canary)
        else:
            done = _misplace(rng, file, canary)
    else:
        _mutate(rng, file)
        done = "damaged"
        if rng.random() < 0.6:
            reseal(file)
    return Case(name, command.split(), relative, done)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, target)


def _plant(rng: random.Random, path: Path, canary: Path) -> str:
    """Put a link to something outside at `path`."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    target = rng.choice((canary, canary / "kept.txt", canary / "absent.txt"))
    path.symlink_to(target)
    return f"a link to {target.name}"


def _misplace(rng: random.Random, path: Path, canary: Path) -> str:
    """Replace a file by what is not a regular file with its contents, and return what was done."""
    kind = rng.choice(("absent", "empty", "folder", "pipe", "endless", "loop", "outside", "outside folder"))
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind != "absent":
        targets = {"endless": "/dev/zero", "loop": path.name, "outside": canary / "kept.txt", "outside folder": canary}
        path.symlink_to(targets[kind])
    return kind


def _mutate(rng: random.Random, path: Path) -> None:
    """Damage the contents of a file in place."""
    path.write_bytes(MUTATIONS.get(path.suffix, bytewise)(rng, path.read_bytes()))
