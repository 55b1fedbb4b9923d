# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own data
#
# From a folder of images to a trained, sampled and evaluated model. To have a folder that everyone
# has, this notebook writes one: JPEG files of procedural faces, in one folder for each class. Set
# `photos` to a folder of your own instead.
#
# Each step is also a command, which its heading names. It takes a few minutes on two CPU cores.

# %%
import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import genmodels
from genmodels import OptimConfig, Recipe, evaluate, fit, open_data, pack
from genmodels.data import save_sheet
from genmodels.data.toyfaces import ATTRIBUTES, draw
from genmodels.pictures import grid
from genmodels.sampling import reconstruct

# %% tags=["parameters"]
steps = 400  # of training, 32 images each
count = 3000  # images to train on


# %%
work = Path(tempfile.mkdtemp())
photos = work / "photos"

# %% [markdown]
# ## A folder of images
#
# Folders called `train`, `val` and `test` are the splits, and the folders in them are the classes. Without
# splits, 5 % of the images are held out for validation; evaluation needs at least 256. Images may have any
# size and format, and need not be square. Two of these files are no images.

# %%
images, attributes = draw(0, np.arange(count + 300), 64)  # seed, numbers of the faces, size
hat = ATTRIBUTES.index("Wearing_Hat")
for index in range(count + 300):
    split = "train" if index < count else "val"
    folder = photos / split / ("hat" if attributes[index, hat] > 0 else "no hat")
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(images[index]).resize((80, 96)).save(folder / f"{index:05d}.jpg", quality=95)
(photos / "train" / "notes.txt").write_text("not an image")
(photos / "train" / "hat" / "damaged.jpg").write_bytes(b"\xff\xd8 not a JPEG file")
print(*(path.relative_to(work) for path in sorted(photos.glob("*/*/*"))[:3]), sep="\n")

# %% [markdown]
# ## Pack them: `genmodels data pack folder --root photos --size 64`
#
# Packing decodes, crops and resizes every image once. It says what it skipped, and why.

# %%
packed = pack("folder", photos, out=work / "packed", size=64)
data = open_data(packed)
print(data.describe())
print("classes:", ", ".join(data.class_names))
for name, reason in data.manifest["skipped"]:
    print(f"skipped {name}: {reason}")

# %% [markdown]
# Look at the images before training: a wrong crop shows here and nowhere else
# (`genmodels data show`).

# %%
save_sheet(data, work / "sheet.png")
Image.open(work / "sheet.png")

# %% [markdown]
# ## Train: `genmodels train vae --data packed --steps 400`
#
# A VAE takes minutes on a CPU. What to choose for larger images and longer budgets is in
# [your-own-data.md](../docs/your-own-data.md#what-to-choose-at-64-128-and-256-pixels).

# %%
run = work / "runs" / "vae"
config = genmodels.VAEConfig(size=64, latent_dim=64)
recipe = Recipe(steps=steps, batch_size=32, optim=OptimConfig(lr=2e-3), output=run, track="none", log_every=20)
fit(genmodels.VAE(config), data, recipe)

# %% [markdown]
# `metrics.jsonl` in the run folder has a line every few steps:

# %%
lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
print("loss", *(f"{line['loss']:.3f}" for line in lines))

# %% [markdown]
# ## Sample: `genmodels sample runs/vae`

# %%
model = genmodels.load(run)
model.images(32, seed=0).grid(16)

# %% [markdown]
# Faces of the validation split, and their reconstructions below:

# %%
held_out = data.split("valid").images[:16]
grid(np.concatenate([held_out, reconstruct(model, held_out)]), columns=16)

# %% [markdown]
# ## Evaluate: `genmodels evaluate runs/vae`
#
# Every distance is printed next to its *floor*, the same distance between two sets of real images.
# So few samples give larger distances than the 2,048 of a table; compare only equal numbers.

# %%
result = evaluate(model, data, n=256)
for name, score in result.scores.items():
    floor = "" if score.floor is None else f" (floor {score.floor:.3f})"
    print(f"{name:24s} {score.value:10.4g}{floor} {score.unit}")

# %% [markdown]
# The numbers can be kept as JSON, and several models on one page: `genmodels evaluate --json`,
# `genmodels compare`. [evaluation.md](../docs/evaluation.md) says what each score means.
