"""Valid inputs of every kind, which the fuzzer damages. Each is made once, when it is first needed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from sources import pictures, to_json, write_cifar10, write_mnist, write_parquet, write_shard
from test_contract import MAP, SMALL, faces, make
from test_exchange import KL, VQ, dit_over_kl, latent_vq, pipeline_folder, unet
from test_results import result

import genmodels
from genmodels.cli import main
from genmodels.data import packing
from genmodels.diffusion.ddpm import DDPM
from genmodels.exchange.export import export_to_diffusers
from genmodels.pretrained import PretrainedConfig, PretrainedKL, PretrainedVQ
from genmodels.saving import from_dict

MODELS = {name.replace(":", "-").replace(" ", "-"): name for name in SMALL}
"""Names of folders of models, and of their settings in the contract suite."""
ROWS: dict[str, list[Any]] = {
    "image": [{"bytes": image, "path": f"{i}.png"} for i, image in enumerate(pictures(10))],
    "label": [i % 2 for i in range(10)],
    "text": [f"picture {i}" for i in range(10)],
}
FEATURES = {
    "image": datasets.Image(),
    "label": datasets.ClassLabel(names=["a", "b"]),
    "text": datasets.Value("string"),
}
FAST = "--mixed-precision no --track none --batch-size 8 --steps 1"
"""Arguments of `genmodels train` that make it fast and the same everywhere."""


class Originals:
    """Valid inputs under a folder, made by the functions of this module when they are asked for."""

    def __init__(self, root: Path):
        self.root = root

    def get(self, name: str) -> Path:
        """Return the path of an input such as "models/vae", "pack" or "runs/vae"."""
        path = self.root / name
        if not path.exists():
            first, _, rest = name.partition("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            MAKERS[first](self, path, rest)
            assert path.exists(), name
        return path


def genmodels_main(*arguments: object) -> None:
    """Run a command in a child: the processes that run the cases must be forked before any training."""
    if not (child := os.fork()):
        status, nowhere = 1, os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        try:
            status = main([str(argument) for argument in arguments])
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0, arguments


def model(_: Originals, path: Path, name: str) -> None:
    made = make(MODELS[name]).eval()
    made.calibrate([faces(40, seed=1, size=made.config.size)])
    made.save_pretrained(path)


def codec(_: Originals, path: Path, __: str) -> None:
    torch.manual_seed(0)
    of = genmodels.family("vae")
    made = of(from_dict(of.Config, MAP | {"size": 16})).eval()
    made.calibrate([faces(40, seed=1, size=16)])
    made.save_pretrained(path)


def folder(_: Originals, path: Path, __: str) -> None:
    """Write twelve pictures of several formats, with attributes, splits, identities and captions."""
    path.mkdir()
    rng = np.random.default_rng(0)
    labels, captions = ["file,split,identity,Smiling,Eyeglasses"], ["file,caption"]
    for i in range(12):
        name = f"{i:02d}{('.png', '.jpg', '.webp')[i % 3]}"
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8).repeat(5, 0).repeat(5, 1)).save(path / name)
        labels.append(f"{name},{('train', 'train', 'valid', 'test')[i % 4]},{i // 2},{1 if i % 2 else -1},0")
        captions.append(f'{name},"a face, number {i}"')
    (path / "attributes.csv").write_text("\n".join(labels) + "\n")
    (path / "captions.csv").write_text("\n".join(captions) + "\n")


def archive(originals: Originals, path: Path, _: str) -> None:
    with zipfile.ZipFile(path, "w") as out:
        for file in sorted(originals.get("faces").iterdir()):
            out.write(file, file.name)


def celeba(_: Originals, path: Path, __: str) -> None:
    (path / "img_align_celeba").mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [f"{i + 1:06d}.jpg" for i in range(6)]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (218, 178, 3), np.uint8)).save(
            path / "img_align_celeba" / name, quality=20
        )
    (path / "list_attr_celeba.txt").write_text("6\nSmiling Young \n" + "".join(f"{n} -1  1\n" for n in names))
    (path / "list_eval_partition.txt").write_text("".join(f"{n} {i // 3}\n" for i, n in enumerate(names)))
    (path / "identity_CelebA.txt").write_text("".join(f"{n} {i + 5}\n" for i, n in enumerate(names)))


def pack(originals: Originals, path: Path, _: str) -> None:
    genmodels_main("data", "pack", "folder", "--root", originals.get("faces"), "--out", path, "--size", 16)


def encoded(originals: Originals, path: Path, _: str) -> None:
    faces = originals.get("faces")
    genmodels_main("data", "pack", "folder", "--root", faces, "--out", path, "--size", 16, "--store", "webp")


def part(originals: Originals, path: Path, name: str) -> None:
    """Write one of two parts of a pack: "1" or "2"."""
    faces, of = originals.get("faces"), f"{name}/2"
    genmodels_main("data", "pack", "folder", "--root", faces, "--out", path, "--size", 16, "--part", of)


def partial(originals: Originals, path: Path, _: str) -> None:
    """Write a pack that was interrupted before its last step."""
    with mock.patch.object(packing, "_finish", side_effect=ValueError("interrupted")):
        main(["data", "pack", "folder", "--root", str(originals.get("faces")), "--out", str(path), "--size", "16"])


def run(originals: Originals, path: Path, name: str) -> None:
    """Train two of three steps."""
    settings = {
        "vae": "channels 8 8, encoder-blocks 1 1, decoder-blocks 1 1, latent-dim 4, mixture 2",
        "gan": "channels 16 16 8, blocks 1, group 8, latent-dim 8, principal 4",
        "dit": "transformer.width 16, transformer.depth 1, transformer.heads 2, gaussian 8, patch 1",
    }
    others = {"gan": ["--evaluate-every", "None"], "dit": ["--codec", originals.get("codec")]}
    chosen = [word for setting in settings[name].split(", ") for word in f"--model.{setting}".split()]
    fast = FAST.replace("--steps 1", "--steps 3 --save-every 1 --keep 3 --log-every 1").split()
    genmodels_main(
        *(
            "train",
            name,
            "--data",
            originals.get("pack"),
            "--size",
            16,
            "--output",
            path,
            *fast,
            *chosen,
            *others.get(name, ()),
        )
    )
    shutil.rmtree(path / "checkpoints" / "step_00000003")


def images(_: Originals, path: Path, name: str) -> None:
    """Write 256 images as an array (x.npy), or an archive of arrays (x.npz)."""
    pixels = np.random.default_rng(len(name)).integers(0, 256, (256, 4, 4, 3), np.uint8).repeat(4, 1).repeat(4, 2)
    if path.suffix == ".npy":
        np.save(path, pixels)
    else:
        np.savez_compressed(path, pixels)


def picture(_: Originals, path: Path, name: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    mode = "RGBA" if name.startswith("alpha") else "L" if name.startswith("mask") else "RGB"
    Image.fromarray(pixels).convert(mode).save(path)


def results(_: Originals, path: Path, __: str) -> None:
    path.mkdir()
    (path / "metrics.json").write_text(result().to_json())
    (path / "other.json").write_text(result("runs/two").to_json())
    Image.fromarray(np.zeros((128, 256, 3), np.uint8)).save(path / "samples.png")


def cache(originals: Originals, path: Path, _: str) -> None:
    """Write features, scores and latents, as evaluate and train cache them."""
    with mock.patch.dict(os.environ, GENMODELS_CACHE=str(path)):
        run(originals, originals.root / "other/dit", "dit")
        genmodels_main("evaluate", originals.get("images/x.npy"), "--data", originals.get("images/other.npy"))


def diffusers(_: Originals, path: Path, name: str) -> None:
    """Write a pipeline (unet, ldm, dit, ddpm) or an autoencoder (kl, vq) as diffusers does."""
    if name == "unet":
        export_to_diffusers(unet(process="ddpm", ddpm=DDPM()), path)
    elif name == "ldm":
        export_to_diffusers(latent_vq(process="ddpm", ddpm=DDPM(prediction="eps", schedule="linear")), path)
    elif name == "dit":
        export_to_diffusers(dit_over_kl(classes=1000), path)
    elif name == "ddpm":
        pipeline_folder(path.parent)
    else:
        family, settings = (PretrainedKL, KL) if name == "kl" else (PretrainedVQ, VQ)
        family(PretrainedConfig(16, settings)).network.save_pretrained(path)


def cifar(_: Originals, path: Path, __: str) -> None:
    write_cifar10(path, 4)


def mnist(_: Originals, path: Path, __: str) -> None:
    write_mnist(path, counts=(6, 4))


def columns(_: Originals, path: Path, name: str) -> None:
    """Write images, labels and captions as a parquet file or an arrow file."""
    write_parquet(path.with_suffix(".parquet"), ROWS, FEATURES)
    if name.endswith(".arrow"):
        table = pq.read_table(path.with_suffix(".parquet"))
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=5)


def saved(_: Originals, path: Path, __: str) -> None:
    own = datasets.Dataset.from_dict(ROWS, datasets.Features(FEATURES))
    datasets.DatasetDict(train=own, test=own).save_to_disk(str(path))


def shards(_: Originals, path: Path, __: str) -> None:
    members: dict[str, bytes | str] = {}
    for i, image in enumerate(pictures(6)):
        record = to_json(caption=[f"picture {i}"], label=i % 2)
        members |= {f"x/{i}.png": image, f"x/{i}.cls": str(i % 2), f"x/{i}.json": record}
    write_shard(path, members)


MAKERS: dict[str, Callable[[Originals, Path, str], None]] = {
    "models": model, "codec": codec, "faces": folder, "faces.zip": archive, "celeba": celeba, "pack": pack,
    "encoded": encoded, "parts": part, "partial": partial, "runs": run, "images": images, "pictures": picture,
    "results": results, "cache": cache, "diffusers": diffusers, "cifar": cifar, "mnist": mnist, "columns": columns,
    "saved": saved, "shards": shards,
}  # fmt: skip
"""Functions that make inputs, by the first part of their names."""


def reseal(path: Path) -> None:
    """Correct the checksums of a damaged file in the record beside it, so that its contents are read."""
    for record in (path.parent / "manifest.json", path.parent / "state.json"):
        if record.is_file() and record != path:
            settings = json.loads(record.read_text())
            known = settings.get("checksums") or settings.get("files") or {}
            if path.name in known:
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                known[path.name] = {"bytes": path.stat().st_size, "sha256": digest} if "files" in settings else digest
                record.write_text(json.dumps(settings))
