"""Small models with random weights for tests of the page, one for each set of abilities, and a picture to refuse."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import torch
from clip_pairs import clip

from genmodels.conditions import ConditionConfig
from genmodels.data import open_data
from genmodels.diffusion.unet import UNet, UNetConfig
from genmodels.llava import LLaVA, LLaVAConfig
from genmodels.lm import LM, LMConfig
from genmodels.nn.transformer import TransformerConfig
from genmodels.text_conditions import TextSource, conditioned_on_text
from genmodels.vae import VAE, VAEConfig

SIZE = 16
CONDITION = ConditionConfig(attributes=("Smiling", "Male"), classes=3, class_names=("cat", "dog", "sea lion"))


def unet(condition: ConditionConfig = CONDITION) -> UNetConfig:
    """Return the config of a small U-Net."""
    return UNetConfig(size=SIZE, channels=(16,), blocks=1, attention=(False,), head=8, groups=8, condition=condition)


def save_models(folder: Path) -> dict[str, Path]:
    """Write a VAE, a U-Net with attributes and classes, a U-Net with text, the CLIP of its text, and a LLaVA
    with the images of that CLIP.

    All record toyfaces as their data. Returns their folders by name.
    """
    torch.manual_seed(0)
    source = TextSource.of(words := clip(size=SIZE))
    text = UNet(conditioned_on_text(unet(ConditionConfig()), source))
    text.use_text_encoder(source)
    vae = VAE(VAEConfig(size=SIZE, latent_dim=8))
    fingerprint = open_data("toyfaces", size=SIZE).fingerprint
    with torch.random.fork_rng():  # the weights of the others stay the same
        language = LM(LMConfig(transformer=TransformerConfig(width=16, depth=1, heads=2)))
        asked = LLaVA.of(words, language, LLaVAConfig(train="all"))
    made = {"vae": vae, "unet": UNet(unet()), "text": text, "clip": words, "llava": asked}
    for name, model in made.items():
        for tensor in (
            each for each in model.parameters() if each.requires_grad
        ):  # zero-initialised layers would make every image the same
            tensor.data += 0.02 * torch.randn_like(tensor)
        model.eval().calibrate([2 * torch.rand(64, 3, SIZE, SIZE) - 1])
        model.save_pretrained(folder / name)
        (folder / name / "config.yaml").write_text(f"data: toyfaces\nfingerprint: {fingerprint}\n")
    return {name: folder / name for name in made}


def empty_png(side: int) -> bytes:
    """Return a PNG file that says it is square with `side` pixels a side, and holds none of them."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = [header, b"IDAT" + zlib.compress(b""), b"IEND"]
    chunks = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
