# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The anatomy of a family
#
# A family of genmodels is one class: a config, a loss and a sampler. Training, sampling, evaluation
# and the command line serve it without knowing it. This notebook writes a family that the package
# does not have, a *normalising flow*, trains it on the latents of a VAE, and compares the two.
#
# It takes a few minutes on two CPU cores.

# %%
import json
import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

import genmodels
from genmodels import Batch, Condition, Noise, OptimConfig, Recipe, fit, open_data
from genmodels.codecs import prior_shape
from genmodels.data import cache_folder
from genmodels.data.batches import image_batches
from genmodels.data.latents import with_latents
from genmodels.evaluation.monitor import Monitor
from genmodels.latent import over_codec
from genmodels.nn.interpolation import slerp
from genmodels.pictures import ImageList
from genmodels.prior import Prior
from genmodels.sampling import interpolate, sample
from genmodels.saving import Derived

# %% tags=["parameters"]
steps = 2000  # of training, 128 images each

# %% [markdown]
# ## The idea
#
# A normalising flow is an invertible map f between data x and noise z = f(x), which is normal. Its
# density is exact, by the change of variables:
#
# $$
# \log p(x) = \log \mathcal{N}(f(x); 0, I) + \log \left| \det \frac{\partial f}{\partial x} \right|
# $$
#
# RealNVP ([arXiv 1605.08803](https://arxiv.org/abs/1605.08803)) builds f from *couplings*. A
# coupling leaves one half a of the vector as it is, and scales and shifts the other half b by what
# a network computes from a. So it can be inverted exactly, whatever the network is, and its Jacobian
# is triangular: the determinant is the product of the scales.


# %%
class Coupling(nn.Module):
    """Affine coupling of vectors (N, D). It exchanges the halves, so that the next one changes the other."""

    def __init__(self, values: int, width: int):
        super().__init__()
        layers = [
            nn.Linear(values // 2, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, values),
        ]
        self.network = nn.Sequential(*layers)
        nn.init.zeros_(layers[-1].weight)  # the flow begins as the identity
        nn.init.zeros_(layers[-1].bias)

    def scale_and_shift(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logarithm of the scale, between -2 and 2, and the shift, each (N, D / 2)."""
        log_scale, shift = self.network(a).chunk(2, dim=1)
        return 2 * torch.tanh(log_scale / 2), shift

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map data to noise, and return the logarithm of the determinant, (N,)."""
        a, b = x.chunk(2, dim=1)
        log_scale, shift = self.scale_and_shift(a)
        return torch.cat([b * log_scale.exp() + shift, a], dim=1), log_scale.sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        """Map noise to data."""
        b, a = y.chunk(2, dim=1)
        log_scale, shift = self.scale_and_shift(a)
        return torch.cat([a, (b - shift) * (-log_scale).exp()], dim=1)


# %% [markdown]
# ## The class
#
# - `Config` is a frozen dataclass. Each field is also a flag of `genmodels train`. `latents` is
#   *derived*: it follows from the codec.
# - `Options` are what can be chosen when sampling; each is a flag of `genmodels sample`.
# - `loss` draws random numbers only from `batch.noise`, so that a resumed run equals an
#   uninterrupted one. (This loss needs none.)
# - `sample` draws only from `noise`, so that every image has a seed of its own.
#
# `Prior` is a `Generator` that can be trained on the latents of a codec instead of pixels. It asks
# for two more things: `over_latents` and `config_over`.


# %%
@dataclass(frozen=True)
class FlowConfig:
    """Architecture of a normalising flow."""

    size: Derived[int] = 64
    latents: Derived[tuple[int, ...] | None] = None
    """Shape of the latents of the codec; None for pixels."""
    width: int = 256
    """Width of the networks."""
    depth: int = 8
    """Number of couplings."""


@dataclass(frozen=True)
class FlowOptions:
    """Sampling options of a normalising flow."""

    temperature: float = 1.0
    """Standard deviation of the noise. Values below 1 give more typical and less varied images."""


class CouplingFlow(Prior):
    """Normalising flow of affine couplings (arXiv 1605.08803)."""

    family = "couplingflow"
    Config = FlowConfig
    Options = FlowOptions

    def __init__(self, config: FlowConfig | None = None):
        c = config or FlowConfig()
        super().__init__(c)
        self.shape = c.latents or (3, c.size, c.size)
        values = math.prod(self.shape)
        self.couplings = nn.ModuleList(Coupling(values, c.width) for _ in range(c.depth))

    @property
    def over_latents(self) -> bool:
        return self.config.latents is not None

    @classmethod
    def config_over(cls, config: FlowConfig, codec: nn.Module) -> FlowConfig:
        return replace(config, latents=prior_shape(codec, codes=False))

    def to_noise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map data (N, *shape) to noise (N, D), and return log |det df/dx|, (N,)."""
        z, log_det = x.flatten(1), torch.zeros(len(x), device=x.device)
        for coupling in self.couplings:
            z, more = coupling(z)
            log_det = log_det + more
        return z, log_det

    def from_noise(self, z: Tensor) -> Tensor:
        """Map noise (N, D) to data (N, *shape)."""
        for coupling in reversed(self.couplings):
            z = coupling.inverse(z)
        return z.unflatten(1, self.shape)

    def nats(self, x: Tensor) -> Tensor:
        """Compute -log p(x) in nats per value, (N,)."""
        z, log_det = self.to_noise(x)
        normal = 0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
        return (normal - log_det) / z.shape[1]

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        nats = self.nats(batch.images).mean()
        return nats, {"nats": nats.detach()}

    def sample(self, noise: Noise, condition: Condition, options: FlowOptions) -> Tensor:
        values = math.prod(self.shape)
        return self.from_noise(options.temperature * noise.normal(values))

    # An ability: nothing else has to be registered for `genmodels interpolate`.
    def interpolate(self, first: Noise, second: Noise, weights: Tensor, options: FlowOptions) -> Tensor:
        values = math.prod(self.shape)
        return self.from_noise(options.temperature * slerp(first.normal(values), second.normal(values), weights))


# %% [markdown]
# ## Test it before training it
#
# The inverse of a flow is exact, and its log-determinant is that of the Jacobian. Both are easy to
# get wrong, and both can be checked in a second on a small flow with random weights.

# %%
torch.manual_seed(0)
small = CouplingFlow(FlowConfig(latents=(6,), width=16, depth=3)).double()
for parameter in small.parameters():
    nn.init.normal_(parameter, std=0.5)
x = torch.randn(5, 6, dtype=torch.float64)
z, log_det = small.to_noise(x)
torch.testing.assert_close(small.from_noise(z), x)
jacobian = torch.autograd.functional.jacobian(lambda row: small.to_noise(row[None])[0][0], x[0])
torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, log_det[0])
print(f"inverse exact; log |det| {log_det[0]:.4f}, by the full Jacobian {torch.linalg.slogdet(jacobian).logabsdet:.4f}")

# %% [markdown]
# ## Train it
#
# The codec is the VAE of procedural faces that comes with the package. Its own samples come from
# N(0, I), or from a mixture of ten Gaussians fitted to the codes of the training faces; the flow
# learns the distribution of these codes. `over_codec` joins both; `fit` is the training loop of
# every family, with an average of the weights and checkpoints. The codes are computed once, as
# `genmodels train --codec` does.

# %%
data = open_data("toyfaces", size=64)
codec = genmodels.load("toyfaces/vae")
torch.manual_seed(0)
flow = CouplingFlow(CouplingFlow.config_over(FlowConfig(), codec))
model = over_codec(codec, flow, image_batches(data.split("train"), limit=1024))
data = with_latents(data, model.encode, model.latents_name, cache_folder(), flip=False)
print(f"{sum(p.numel() for p in flow.parameters()):,} parameters over latents {flow.shape}")

held_out = next(image_batches(data.split("valid"), batch_size=512))
with torch.no_grad():
    before = flow.nats(model.encode(held_out)).mean().item()

output = Path(tempfile.mkdtemp()) / "flow"
settings = Recipe(steps=steps, output=output, flip=False, track="none", optim=OptimConfig(lr=2e-3), log_every=100)
fit(model, data, settings)

# %% [markdown]
# `metrics.jsonl` in the run folder has a line every few steps:

# %%
lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
print("loss", *(f"{line['loss']:.3f}" for line in lines))

# %% [markdown]
# ## What it learned
#
# A run folder holds the whole model, codec included. `genmodels.load` finds a family by its name.
# Here one line registers the class of this notebook; a package does it with an entry point
# ([CONTRIBUTING.md](../CONTRIBUTING.md#how-to-add-a-family)), and `genmodels train couplingflow` then
# works too.

# %%
genmodels.FAMILIES["couplingflow"] = "__main__:CouplingFlow"
model = genmodels.load(output)
with torch.no_grad():
    after = model.prior.nats(model.encode(held_out)).mean().item()
print(f"held-out faces, nats per latent value: {before:.3f} before, {after:.3f} after training")
model.images(16, seed=0)

# %% [markdown]
# The methods of the class are its abilities. So the flow interpolates, and does not inpaint:

# %%
print({name: model.can(name) for name in ("sample", "reconstruct", "interpolate", "inpaint")})
ImageList.from_arrays(interpolate(model, [1, 2, 3], 8).reshape(-1, 64, 64, 3)).grid(8)

# %% [markdown]
# ## Compare it
#
# The Fréchet distance between 512 samples and held-out faces, as training reports it: good enough to
# rank these three, whose decoder is the same. `genmodels evaluate` and `genmodels compare` measure
# with more samples and report more.

# %%
monitor = Monitor(data)
distances = {}
for name, source, options in (
    ("VAE, z from N(0, I)", codec, {"latents": "prior"}),
    ("VAE, z from the mixture", codec, {"latents": "mixture"}),
    ("VAE, z from the flow", model, {}),
):
    scores = monitor.measure(sample(source, Monitor.samples, progress=False, **options))
    distances[name] = scores[Monitor.name]
    print(f"{name:25s} FD-faces, n = 512: {distances[name]:.3f}")
