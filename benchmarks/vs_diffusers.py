"""Train the same text-to-image U-Net with `genmodels train unet` and with the loop of diffusers' example.

    python benchmarks/vs_diffusers.py --data packed/celeba64 --codec runs/kl --text runs/clip --minutes 8

Both train for the same minutes, one after the other, in one process with the same number of threads
each: the same UNet2DConditionModel with new weights, over the same codec and the same frozen text
encoder. The second loop does what examples/text_to_image/train_text_to_image.py of diffusers does:
images are encoded by the VAE in each step; captions are tokenized once per image, padded to the
context, and encoded in each step; noise is predicted (DDPMScheduler with the settings of Stable
Diffusion 1.5) with a plain squared error; AdamW with a constant learning rate and warm-up, gradients
clipped at 1, diffusers' EMAModel, the frozen networks in the precision of training. There is no
caption dropout, and no image is mirrored unless --flip is given.

Both models then sample with the captions of validation images, in templates that do not occur in
training, at the same guidance, and are scored by the same parts of `genmodels evaluate`. OUT gets
both models (ours/ is a run folder, plain/ a folder of StableDiffusionPipeline), their samples
(ours.npy, plain.npy) and results.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

import genmodels
from genmodels.data import Packed, open_data
from genmodels.data.captions import captions
from genmodels.evaluation import clip_score, conditional, samples
from genmodels.evaluation.context import Context
from genmodels.evaluation.extractors import Extractor, load_extractor
from genmodels.evaluation.reference import reference_from
from genmodels.evaluation.results import Score
from genmodels.exchange.autoencoder import autoencoder_for_diffusers
from genmodels.exchange.clip_layout import tokenizer_for_transformers
from genmodels.exchange.stable_diffusion import text_encoder_for_transformers
from genmodels.latent import Latent

NAMES = {"ours": "genmodels train unet", "plain": "the loop of diffusers' example"}
SHOWN = ("Male", "Smiling", "Blond_Hair", "Eyeglasses")
"""Attributes that have columns of their own."""
STABLE_DIFFUSION = {
    **{"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    **{"clip_sample": False, "steps_offset": 1},
}
"""Settings of the scheduler of Stable Diffusion 1.5."""
RESERVED = 5.0
"""Seconds of the minutes of the second loop that are left for saving."""


class CaptionedImages(Dataset[tuple[Tensor, Tensor]]):
    """Images (3, H, W) in [-1, 1] with the token ids (L,) of one caption each."""

    def __init__(self, data: Packed, tokenizer: Any, flip: bool, seed: int):
        self.images = data.images
        rows = range(len(data))
        texts = (
            captions(data.attributes, data.attribute_names, rows, [0] * len(rows), seed)
            if data.text is None
            else [texts[0] if texts else "" for texts in data.text]
        )
        self.ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        self.transform = v2.Compose(
            [
                v2.ToImage(),
                v2.RandomHorizontalFlip() if flip else v2.Identity(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.5], [0.5]),
            ]
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(np.asarray(self.images[index])), self.ids[index]


def plain_loop(
    model: Latent, data: Packed, settings: argparse.Namespace, more: Callable[[int], bool]
) -> tuple[Any, dict[str, float]]:
    """Train a new U-Net as diffusers' example does.

    Args:
        model: gives the codec, the text encoder, and the settings of the U-Net.
        data: training images.
        settings: of the command line: batch_size, lr, warmup, flip, mixed_precision, seed.
        more: whether to go on after this number of steps.

    Returns:
        A StableDiffusionPipeline with the averaged weights; images and images per second.
    """
    import diffusers
    from accelerate import Accelerator
    from accelerate.utils import set_seed
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    set_seed(settings.seed)
    accelerator = Accelerator(mixed_precision=settings.mixed_precision)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = tokenizer_for_transformers(model.tokenizer, Path(folder))
    vae, text_encoder = autoencoder_for_diffusers(model.codec), text_encoder_for_transformers(model.prior)
    unet = type(model.prior.network).from_config(model.prior.network.config).train()
    scheduler: Any = diffusers.DDPMScheduler(**STABLE_DIFFUSION)
    average = EMAModel(unet.parameters())
    optimizer = torch.optim.AdamW(unet.parameters(), settings.lr, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    rate = get_scheduler("constant_with_warmup", optimizer, num_warmup_steps=settings.warmup)
    images = CaptionedImages(data, tokenizer, settings.flip, settings.seed)
    loader = DataLoader(images, settings.batch_size, shuffle=True, drop_last=True)
    network, optimizer, loader, rate = accelerator.prepare(unet, optimizer, loader, rate)
    dtype = torch.bfloat16 if settings.mixed_precision == "bf16" else torch.float32
    frozen_vae, frozen_text = (copy.deepcopy(part).requires_grad_(False).to(dtype) for part in (vae, text_encoder))

    step, began = 0, time.monotonic()
    while more(step):
        for pixels, ids in loader:
            with torch.no_grad():
                latents = frozen_vae.encode(pixels.to(dtype)).latent_dist.sample() * vae.config.scaling_factor
                tokens = frozen_text(ids)[0]
            noise = torch.randn_like(latents)
            t = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),))
            predicted = network(scheduler.add_noise(latents, noise, t), t, tokens).sample
            loss = F.mse_loss(predicted.float(), noise.float())
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            rate.step()
            optimizer.zero_grad()
            average.step(unet.parameters())
            step += 1
            if step % 50 == 0:
                print(f"step {step}, loss {loss.item():.4f}", file=sys.stderr, flush=True)
            if not more(step):
                break
    count = step * settings.batch_size
    speed = {"images": count, "images_per_second": count / (time.monotonic() - began)}
    average.copy_to(unet.parameters())
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipeline, speed


def run_plain_loop(settings: argparse.Namespace) -> None:
    """Train in this process until the minutes since its start are over, and write OUT/plain."""
    end = psutil.Process().create_time() + 60 * settings.minutes - RESERVED
    model: Any = genmodels.load(settings.out / "ours")
    data = open_data(settings.data, settings.root, model.config.size).split("train")
    pipeline, speed = plain_loop(model, data, settings, lambda step: time.time() < end)
    if not speed["images"]:
        raise SystemExit(f"--minutes {settings.minutes:g} was over before the first step of the second loop: give more")
    pipeline.save_pretrained(settings.out / "plain")
    (settings.out / "plain" / "speed.json").write_text(json.dumps(speed))


def speed_of_run(run: Path) -> dict[str, float]:
    """Return the images of a run, and the median of its logged images per second."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {"images": lines[-1]["images"], "images_per_second": median(line["images_per_second"] for line in lines)}


def score(model: Any, data: Packed, extractors: list[Extractor], settings: argparse.Namespace) -> dict[str, Any]:
    """Sample with the captions of validation images, score the samples, and return both."""
    reference, options = reference_from(data, "valid"), {"guidance": settings.guidance}
    context = Context(reference, extractors, 64, model=model, n=settings.n, seed=settings.seed, options=options)
    context.samples = context.requested.samples
    parts = [part(context) for part in (samples.part, conditional.part, clip_score.part)]
    scores: dict[str, Score] = {name: score for part in parts for name, score in part.scores.items()}
    shown = {name: {"value": s.value, "floor": s.floor, "each": s.each or {}} for name, s in scores.items()}
    return {"samples": np.asarray(context.samples.pixels), "scores": shown}


def row(name: str, result: dict[str, Any]) -> str:
    """Return a row of the table."""
    scores, speed = result["scores"], result["speed"]
    accuracy = scores.get("attributes-faces", {"value": float("nan"), "each": {}})
    values = [scores["fd-faces"]["value"], accuracy["value"]]
    values += [accuracy["each"].get(attribute, float("nan")) for attribute in SHOWN]
    numbers = " | ".join(f"{value:.3f}" for value in values)
    return f"| {name} | {speed['images']:,.0f} | {speed['images_per_second']:.0f} | {numbers} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="packed/celeba64", help="packed images with attributes or captions")
    parser.add_argument("--root", type=Path, help="folder with the images of celeba or folder")
    parser.add_argument("--codec", type=Path, required=True, help="run folder of a kl, or folder of an AutoencoderKL")
    parser.add_argument("--text", type=Path, required=True, help="run folder of a clip")
    parser.add_argument("--minutes", type=float, default=8.0, help="of each of the two, start-up included")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each of the two")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--mixed-precision", choices=("no", "bf16"), default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=1e-4, help="learning rate of the second loop")
    parser.add_argument("--warmup", type=int, default=100, help="steps of warm-up of the second loop")
    parser.add_argument("--flip", action="store_true", help="mirror images at random in the second loop too")
    parser.add_argument("--ours", default="", help='more flags of genmodels train unet: --ours="--a 1 --b 2"')
    parser.add_argument("--n", type=int, default=2000, help="number of samples of each model")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--extractors", nargs="*", default=[], help="more extractors, such as clip=runs/other-clip")
    parser.add_argument("--out", type=Path, default=Path("runs/vs-diffusers"))
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.plain:
        run_plain_loop(settings)
        return
    extractors = [load_extractor(spec) for spec in ("faces", *settings.extractors)]  # before any work
    settings.out.mkdir(parents=True)
    flags = ("data", "root", "codec", "text", "minutes", "seed", "batch_size", "mixed_precision")
    given = {name: value for name in flags if (value := getattr(settings, name)) is not None}
    ours = [sys.executable, "-m", "genmodels", "train", "unet", "--output", str(settings.out / "ours")]
    ours += [f"--{name.replace('_', '-')}={value}" for name, value in given.items()] + shlex.split(settings.ours)
    environment = os.environ | {"OMP_NUM_THREADS": str(settings.threads)}
    for call in (ours, [sys.executable, *sys.argv, "--plain"]):
        subprocess.run(call, env=environment, check=True)

    torch.set_num_threads(settings.threads)
    results = {}
    for name in NAMES:
        model: Any = genmodels.load(settings.out / name)
        data = open_data(settings.data, settings.root, model.config.size)
        result = score(model, data, extractors, settings)
        np.save(settings.out / f"{name}.npy", result.pop("samples"))
        file = settings.out / "plain" / "speed.json"
        result["speed"] = speed_of_run(settings.out / "ours") if name == "ours" else json.loads(file.read_text())
        results[name] = result
    shown = {name: str(value) for name, value in vars(settings).items() if name != "plain"}
    facts = {"settings": shown, "torch": torch.__version__, "results": results}
    (settings.out / "results.json").write_text(json.dumps(facts, indent=2) + "\n")
    columns = ["images", "images/s", "FD-faces", "attributes", *SHOWN]
    print(f"| | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for name, result in results.items():
        print(row(NAMES[name], result))


if __name__ == "__main__":
    main()
