"""Samples from a U-Net exported by genmodels, with diffusers only: python sample.py --n 16."""

from __future__ import annotations

import argparse
import json
import unicodedata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor


class Model:
    """A model exported as unet/, scheduler/, vae/ (the codec), genmodels.json and .safetensors."""

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
        """Embed a condition: (N, D), or None for an unconditional model.

        Args:
            n: N, number of samples.
            attributes: (N, K) in {-1, 0, 1} (no, unknown, yes), or None.
            labels: (N,), -1 if unknown, or None.
        """
        if not any(name.startswith("condition.") for name in self.extras):
            return None
        embedded = torch.zeros(n, self.unet.time_embedding.linear_2.out_features)
        if attributes is not None and attributes.shape[1]:
            embedded = embedded + attributes.float() @ self.extras["condition.attributes.weight"].T
        if labels is not None:
            known = (labels >= 0).unsqueeze(1)
            embedded = embedded + known * self.extras["condition.labels.weight"][labels.clamp_min(0)]
        return embedded

    def output(self, x: Tensor, t: Tensor, alpha: float, sigma: float, condition: Tensor | None) -> Tensor:
        """The prediction that the scheduler expects at x_t = alpha x_0 + sigma eps."""
        process, patch = self.settings["process"], self.settings["patch"]
        data = self.scheduler.config.get("sigma_data", 1.0)
        scaled = x / (sigma**2 + data**2) ** 0.5 if process == "edm" else x
        time_input = (1000 * t if process == "edm" else t).expand(len(x))
        output = F.pixel_shuffle(self.unet(F.pixel_unshuffle(scaled, patch), time_input, condition).sample, patch)
        if "gaussian.mean" not in self.extras:
            return output
        # The network corrects the closed-form denoiser of normal data.
        x0 = self.gaussian_denoiser(x, alpha, sigma)
        if process == "flow":
            return output + (x - x0) / sigma
        if process == "edm":
            skip, out = data**2 / (sigma**2 + data**2), sigma * data / (sigma**2 + data**2) ** 0.5
            return output + (x0 - skip * x) / out
        eps = (x - alpha * x0) / sigma
        prediction_type = self.scheduler.config.prediction_type
        return output + {"epsilon": eps, "v_prediction": alpha * eps - sigma * x0, "sample": x0}[prediction_type]

    def gaussian_denoiser(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """E[x_0 | x_t] of normal data, from their mean and principal components."""
        mean, basis, variance, rest = (
            self.extras[f"gaussian.{name}"] for name in ("mean", "basis", "variance", "rest")
        )
        centred = x.flatten(1) - alpha * mean
        gain, rest_gain = (alpha * value / (alpha**2 * value + sigma**2) for value in (variance, rest))
        return (mean + rest_gain * centred + ((gain - rest_gain) * (centred @ basis)) @ basis.T).view(x.shape)

    @torch.no_grad()
    def sample(
        self,
        noise: Tensor,
        steps: int = 20,
        attributes: Tensor | None = None,
        labels: Tensor | None = None,
        guidance: float = 1.0,
    ) -> Tensor:
        """Generate images (N, 3, H, W) in [-1, 1] from standard normal noise (N, C, H, W)."""
        scheduler, process = self.scheduler, self.settings["process"]
        if process == "flow":
            scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
        else:
            scheduler.set_timesteps(steps)
        x = noise * float(scheduler.sigmas[0]) if process == "edm" else noise
        # Recompute eps from the clipped x_0, as genmodels does.
        settings = {"use_clipped_model_output": True} if process == "ddpm" else {}
        condition = self.condition(len(noise), attributes, labels)
        null = self.condition(len(noise), None, None)
        for i, t in enumerate(scheduler.timesteps):
            if process == "ddpm":
                abar = scheduler.alphas_cumprod[int(t)]
                alpha, sigma = float(abar.sqrt()), float((1 - abar).sqrt())
            else:
                sigma = float(scheduler.sigmas[i])
                alpha = 1 - sigma if process == "flow" else 1.0
            output = self.output(x, t, alpha, sigma, condition)
            if guidance != 1:
                unconditional = self.output(x, t, alpha, sigma, null)
                output = unconditional + guidance * (output - unconditional)
            if process == "edm":
                scheduler.scale_model_input(x, t)  # sets the scheduler's step index
            x = scheduler.step(output, t, x, **settings).prev_sample
        if self.vae is not None:
            shape = (1, -1, 1, 1)
            x = x * self.extras["latents.std"].view(shape) + self.extras["latents.mean"].view(shape)
            x = self.vae.decode(x).sample
        return x.clamp(-1, 1)


def class_number(label: str, classes: int, names: list[str]) -> int | None:
    """The number of a class, given its name, in any case, or its number; None if there is none."""
    folded = [unicodedata.normalize("NFC", name).casefold() for name in [*names, label]]
    if (position := folded.index(folded[-1])) < len(names):
        return position
    number = int(label) if label.isdecimal() and len(label) < 10 else classes
    return number if number < classes else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--attributes", default="", help="for example Smiling=yes,Male=no; others are unspecified")
    parser.add_argument("--label", help="name or number of a class")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--out", default="samples.png")
    args = parser.parse_args()
    from torchvision.utils import save_image

    model = Model(Path(__file__).parent)
    names, classes, class_names = (model.settings[key] for key in ("attributes", "classes", "class_names"))
    if args.n < 1 or args.steps < 1:
        parser.error("--n and --steps must be at least 1")
    label = None if args.label is None else class_number(args.label, classes, class_names)
    if args.label is not None and label is None:
        known = f": {', '.join(class_names[:20])}" if class_names else ""
        parser.error(f"--label {args.label}: this model has {classes} classes{known}")
    if args.guidance != 1 and not (names or classes):
        parser.error("--guidance needs a model with attributes or classes")
    if Path(args.out).exists():
        parser.error(f"{args.out} exists: choose another --out")
    attributes = torch.zeros(args.n, len(names))
    for item in filter(None, args.attributes.split(",")):
        name, _, value = item.partition("=")
        if name not in names or value not in ("yes", "no"):
            parser.error(f"{item}: write NAME=yes or NAME=no; names: {', '.join(names) or 'none'}")
        attributes[:, names.index(name)] = 1 if value == "yes" else -1
    labels = None if label is None else torch.full((args.n,), label)
    noise = torch.randn(
        args.n, *model.settings["channels_height_width"], generator=torch.Generator().manual_seed(args.seed)
    )
    images = model.sample(noise, args.steps, attributes, labels, args.guidance)
    save_image(images / 2 + 0.5, args.out, nrow=8)
    print(f"{args.n} images in {args.out}")


if __name__ == "__main__":
    main()
