# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A tour of the families
#
# What families of generative models can do, side by side, on *toyfaces*: procedural faces that the
# package draws itself. Small trained models come with the package, so nothing is downloaded. The
# tour takes a few minutes on two CPU cores. Training, in the last section, is the longest part.

# %%
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import genmodels
from genmodels import OptimConfig, Recipe, fit, open_data
from genmodels.abilities import ABILITIES
from genmodels.data.batches import image_batches
from genmodels.directions import attribute_directions, traverse
from genmodels.pictures import grid
from genmodels.sampling import edit, inpaint, interpolate, reconstruct, sample, trajectory
from genmodels.shipped import names

# %% tags=["parameters"]
steps = 400  # of training, 32 images each


# %%
def rows(pictures: dict[str, np.ndarray]) -> Image.Image:
    """Draw one row of images per name, and print the names from top to bottom."""
    for name in pictures:
        print(name)
    return grid(np.concatenate(list(pictures.values())), columns=len(next(iter(pictures.values()))))


# %% [markdown]
# ## The data
#
# Each face is a function of a seed. Its attributes and captions are known, so that models can be
# conditioned on them and be measured.

# %%
data = open_data("toyfaces", size=64)
print(data.describe())
faces = data.split("valid").images[:12]
grid(faces, columns=12)

# %% [markdown]
# ## The models
#
# `genmodels.load` takes a run folder, a name such as `toyfaces/vae`, or an id on the Hub. No code
# asks which family a model is: it asks what the model *can* do.

# %%
models = {name: genmodels.load(name) for name in names()}
for name, model in models.items():
    size = sum(parameter.numel() for parameter in model.parameters())
    can = ", ".join(ability.name for ability in ABILITIES if ability.command and model.can(ability.name))
    print(f"{name:24s} {size:10,} parameters; {can}")

# %% [markdown]
# ## Sample
#
# One row of a model each, from seed 0. Image i of a seed is always the same. A GAN or a VAE needs
# one evaluation of its network, diffusion several, and an autoregressive model one per token.

# %%
samples = {}
for name, model in models.items():
    if model.can("sample"):
        began = time.perf_counter()
        samples[name] = sample(model, 12, progress=False)
        print(f"{name:24s} {12 / (time.perf_counter() - began):8.1f} images/s")
rows(samples)

# %% [markdown]
# ## Choose what is sampled
#
# Models that were trained with attributes or captions take conditions. `guidance` above 1 follows a
# condition more closely, and varies less.

# %%
for name, model in models.items():
    if model.can("sample") and model.conditions:
        print(f"{name:24s} attributes {list(model.conditions.attributes)}, text: {model.can('tokenize')}")

# %%
prompts = ("a smiling woman with glasses", "a bald man with a beard", "a woman wearing a hat")
chosen = {"without a condition": next(iter(samples.values()))}
for name, model in models.items():
    if model.can("sample") and model.can("tokenize"):
        chosen |= {f"{name}: {p}": sample(model, 12, condition={"prompt": p}, progress=False) for p in prompts}
    elif model.can("sample"):
        for attribute in model.conditions.attributes[:2]:
            chosen[f"{name}: {attribute}"] = sample(model, 12, condition={attribute: 1}, progress=False)
rows(chosen)

# %% [markdown]
# ## Reconstruct
#
# Autoencoders compress a face and restore it. A prior over a codec cannot be sharper than its codec,
# so look at the reconstructions before blaming the prior. The first row are faces that no model was
# trained on.

# %%
codecs = {name: model for name, model in models.items() if model.can("reconstruct") and not model.can("prior")}
rows({"held-out faces": faces} | {name: reconstruct(model, faces) for name, model in codecs.items()})

# %% [markdown]
# ## Interpolate
#
# From the sample of seed 1 to that of seed 2. `genmodels interpolate` also writes this as an
# animation.

# %%
able = {name: model for name, model in models.items() if model.can("interpolate")}
rows({name: interpolate(model, [1, 2], 12)[0] for name, model in able.items()})

# %% [markdown]
# ## Directions
#
# Models that make an image from one vector have directions of attributes in that space: the
# difference of two means. Here each row adds a multiple of one of them to the same sample.

# %%
train = data.split("train")
wanted = ("Smiling", "Eyeglasses", "Male")
columns = [train.attribute_names.index(attribute) for attribute in wanted]
changed = {}
for name, model in models.items():
    if model.can("latent_directions"):
        directions = attribute_directions(model, train.images[:512], train.attributes[:512, columns], wanted)
        steps_along = traverse(model, None, directions, torch.linspace(-2, 2, 12), n=1)[0]  # (K, 12, H, W, 3)
        changed |= {f"{name}: {attribute}": steps_along[row] for row, attribute in enumerate(wanted)}
rows(changed)

# %% [markdown]
# ## Complete, edit, denoise
#
# An autoregressive model or a diffusion model completes a face of which a part is known. Diffusion
# also edits a face, by adding noise and removing it again, and shows how a face appears from noise.

# %%
known = np.zeros((64, 64), bool)
known[:32] = True  # the upper half
hidden = np.where(known[None, :, :, None], faces, 128).astype(np.uint8)
done = {"what is known": hidden}
for name, model in models.items():
    if model.can("inpaint"):
        done[f"{name}: completed"] = inpaint(model, faces, known)[:, 0]
    if model.can("edit"):
        done[f"{name}: edited, strength 0.5"] = edit(model, faces, 0.5)
    if model.can("trajectory"):
        steps_of = trajectory(model, 1)[0, 1]  # predictions of one image, from noise to the face
        done[f"{name}: predictions"] = steps_of[np.linspace(0, len(steps_of) - 1, 12).round().astype(int)]
rows(done)

# %% [markdown]
# ## Search with words
#
# CLIP embeds images and sentences in one space, in which a sentence finds its images.

# %%
found = {}
pool = data.split("valid").images[:512]
for name, model in models.items():
    if model.can("embed"):
        with torch.inference_mode():
            images = torch.cat([model.embed_images(part) for part in image_batches(data.split("valid"), limit=512)])
            for prompt, sentence in zip(prompts, model.embed_texts(model.tokenize(prompts)), strict=True):
                found[f"{name}: {prompt}"] = pool[(images @ sentence).topk(12).indices.numpy()]
rows(found or {"no model embeds": faces})

# %% [markdown]
# ## Train one
#
# `fit` trains any model. A recipe says how long and how; the run folder holds the model, its card,
# its settings and its curves. `genmodels train vae --size 32 --steps 400` is the same on the command
# line.

# %%
small = open_data("toyfaces", size=32)
output = Path(tempfile.mkdtemp()) / "vae"
config = genmodels.VAEConfig(size=32, latent_dim=64)
recipe = Recipe(steps=steps, batch_size=32, optim=OptimConfig(lr=2e-3), output=output, track="none", log_every=20)
fit(genmodels.VAE(config), small, recipe)

# %% [markdown]
# `metrics.jsonl` in the run folder has a line every few steps:

# %%
lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
print("loss", *(f"{line['loss']:.3f}" for line in lines))

# %%
trained = genmodels.load(output)
unseen = small.split("valid").images[:12]
sampled = sample(trained, 12, progress=False)
rows({"held-out faces": unseen, "reconstructed": reconstruct(trained, unseen), "sampled": sampled})

# %% [markdown]
# ## Where to go on
#
# - [The anatomy of a family](anatomy.py) writes a family in a notebook.
# - [Your own data](your_own_data.py) goes from a folder of images to a trained and evaluated model.
# - [How the families differ](../docs/families.md) compares them on photos of faces, with scores.
