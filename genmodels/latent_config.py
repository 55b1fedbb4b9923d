"""The config of a codec and a prior that are one model, and how its parts are built from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import genmodels
from genmodels.pretrained import PRETRAINED
from genmodels.saving import from_dict, to_dict


@dataclass(frozen=True)
class Part:
    """Family and config of a codec or prior."""

    family: str
    """A family of genmodels, or the class of a diffusers autoencoder."""
    model: dict[str, Any]
    """Its config."""

    def __post_init__(self) -> None:
        # As JSON returns it (lists for tuples), so that a config equals itself after a round trip.
        object.__setattr__(self, "model", json.loads(json.dumps(self.model)))

    @classmethod
    def of(cls, module: Any) -> Part:
        """Describe `module`."""
        return cls(module.family, to_dict(module.config))

    def build(self) -> Any:
        """Build a module with this config and random weights."""
        kind: Any = PRETRAINED[self.family] if self.family in PRETRAINED else genmodels.family(self.family)
        return kind(from_dict(kind.Config, self.model, self.family))


@dataclass(frozen=True)
class LatentConfig:
    """A codec and a prior, each with its own config."""

    codec: Part
    """The codec. It is frozen."""
    prior: Part
    """The prior, which is trained."""
    codec_weights: str = ""
    """Hash of the codec's weights. Its latents mean nothing to another codec."""
    size: int = 64
    """Side of the images in pixels."""
    safety_checker: bool = False
    """Whether a safety checker flags samples that are not shown."""
