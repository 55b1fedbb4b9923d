"""Samples a U-Net that genmodels exported, with diffusers and without genmodels: python sample.py --n 16."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor


class Model:
    """What lies in a folder: unet/, scheduler/, the codec's vae/, genmodels.json and genmodels.safetensors."""

    def __init__(self, folder: Path):
        import diffusers

        self.settings = json.loads((folder / "genmodels.json").read_text())
        self.extras = load_file(folder / "genmodels.safetensors")
        self.unet = diffusers.UNet2DModel.from_pretrained(folder / "unet").eval()
        kind = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
        self.scheduler: Any = getattr(diffusers, kind).from_pretrained(folder / "scheduler")
        self.vae: Any = None
        if (folder / "vae").is_dir():
            kind = json.loads((folder / "vae" / "config.json").read_text())["_class_name"]
            self.vae = getattr(diffusers, kind).from_pretrained(folder / "vae").eval()

    def condition(self, n: int, attributes: Tensor | None, labels: Tensor | None) -> Tensor | None:
        """(N, D): attributes (N, K) in {-1, 0, 1}, labels (N,) or -1; None for a model without condition."""
        if not any(name.startswith("condition.") for name in self.extras):
            return None
        found = torch.zeros(n, self.unet.time_embedding.linear_2.out_features)
        if attributes is not None and attributes.shape[1]:
            found = found + attributes.float() @ self.extras["condition.attributes.weight"].T
        if labels is not None:
            known = (labels >= 0).unsqueeze(1)
            found = found + known * self.extras["condition.labels.weight"][labels.clamp_min(0)]
        return found

    def output(self, x: Tensor, t: Tensor, alpha: float, sigma: float, condition: Tensor | None) -> Tensor:
        """The prediction that the scheduler expects at x_t = alpha x_0 + sigma eps."""
        process, patch = self.settings["process"], self.settings["patch"]
        data = self.scheduler.config.get("sigma_data", 1.0)
        given = x / (sigma**2 + data**2) ** 0.5 if process == "edm" else x
        signal = (1000 * t if process == "edm" else t).expand(len(x))
        found = F.pixel_shuffle(self.unet(F.pixel_unshuffle(given, patch), signal, condition).sample, patch)
        if "gaussian.mean" not in self.extras:
            return found
        x0 = self.filtered(x, alpha, sigma)
        if process == "flow":
            return found + (x - x0) / sigma
        if process == "edm":
            skip, out = data**2 / (sigma**2 + data**2), sigma * data / (sigma**2 + data**2) ** 0.5
            return found + (x0 - skip * x) / out
        eps = (x - alpha * x0) / sigma
        kind = self.scheduler.config.prediction_type
        return found + {"epsilon": eps, "v_prediction": alpha * eps - sigma * x0, "sample": x0}[kind]

    def filtered(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """The expected data if they were normal, from their mean and principal components."""
        mean, basis, variance, rest = (
            self.extras[f"gaussian.{name}"] for name in ("mean", "basis", "variance", "rest")
        )
        away = x.flatten(1) - alpha * mean
        gain, others = (alpha * value / (alpha**2 * value + sigma**2) for value in (variance, rest))
        return (mean + others * away + ((gain - others) * (away @ basis)) @ basis.T).view(x.shape)

    @torch.no_grad()
    def sample(
        self,
        noise: Tensor,
        steps: int = 20,
        attributes: Tensor | None = None,
        labels: Tensor | None = None,
        guidance: float = 1.0,
    ) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] from standard normal noise (N, C, H, W)."""
        scheduler, process = self.scheduler, self.settings["process"]
        if process == "flow":
            scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
        else:
            scheduler.set_timesteps(steps)
        x = noise * float(scheduler.sigmas[0]) if process == "edm" else noise
        # Where the data are clipped, the noise is what is left.
        how = {"use_clipped_model_output": True} if process == "ddpm" else {}
        wanted = self.condition(len(noise), attributes, labels)
        nothing = self.condition(len(noise), None, None)
        for i, t in enumerate(scheduler.timesteps):
            if process == "ddpm":
                bar = scheduler.alphas_cumprod[int(t)]
                alpha, sigma = float(bar.sqrt()), float((1 - bar).sqrt())
            else:
                sigma = float(scheduler.sigmas[i])
                alpha = 1 - sigma if process == "flow" else 1.0
            found = self.output(x, t, alpha, sigma, wanted)
            if guidance != 1:
                other = self.output(x, t, alpha, sigma, nothing)
                found = other + guidance * (found - other)
            if process == "edm":
                scheduler.scale_model_input(x, t)  # it counts its steps here
            x = scheduler.step(found, t, x, **how).prev_sample
        if self.vae is not None:
            shape = (1, -1, 1, 1)
            x = x * self.extras["latents.std"].view(shape) + self.extras["latents.mean"].view(shape)
            x = self.vae.decode(x).sample
        return x.clamp(-1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--attributes", default="", help="such as Smiling=yes,Male=no; what is not named is open")
    parser.add_argument("--label", type=int)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--out", default="samples.png")
    args = parser.parse_args()
    from torchvision.utils import save_image

    model = Model(Path(__file__).parent)
    names, classes = model.settings["attributes"], model.settings["classes"]
    if args.n < 1 or args.steps < 1:
        parser.error("--n and --steps must be at least 1")
    if args.label is not None and not 0 <= args.label < classes:
        parser.error(f"--label {args.label}: this model has {classes} classes")
    if args.guidance != 1 and not (names or classes):
        parser.error("--guidance needs a model with attributes or classes")
    if Path(args.out).exists():
        parser.error(f"{args.out} exists: choose another --out")
    attributes = torch.zeros(args.n, len(names))
    for wish in filter(None, args.attributes.split(",")):
        name, _, value = wish.partition("=")
        if name not in names or value not in ("yes", "no"):
            parser.error(f"{wish}: write NAME=yes or NAME=no; names: {', '.join(names) or 'none'}")
        attributes[:, names.index(name)] = 1 if value == "yes" else -1
    labels = None if args.label is None else torch.full((args.n,), args.label)
    noise = torch.randn(
        args.n, *model.settings["channels_height_width"], generator=torch.Generator().manual_seed(args.seed)
    )
    images = model.sample(noise, args.steps, attributes, labels, args.guidance)
    save_image(images / 2 + 0.5, args.out, nrow=8)
    print(f"{args.n} images in {args.out}")


if __name__ == "__main__":
    main()
