"""Bits per code of held-out images."""

from __future__ import annotations

from dataclasses import replace

import torch

from genmodels.evaluation.context import Context, Part
from genmodels.evaluation.pairs import mean_and_error
from genmodels.evaluation.results import Score
from genmodels.modes import evaluating


def part(context: Context) -> Part:
    """Compute the bits per code of the codes of images.

    This is not a likelihood of images, since many images have the same codes. The codes of another
    codec are another alphabet.
    """
    model = context.model
    images, protocol = context.held_out()
    with evaluating(model), torch.inference_mode():
        value, error = mean_and_error([model.bits_per_token(x) for x in context.batches(images, "bits/token")])
    how = "exact, for the codes; what the codec discards is not included"
    of = replace(protocol, alphabet=model.latents_name)
    score = Score(value, "lower", how, of, "bits/token", error, group="likelihood")
    return Part({"bits-per-token": score}, {"bits-per-dim": "it is the codes that have a likelihood, not the images"})
