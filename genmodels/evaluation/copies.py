"""Whether samples are copies of training images."""

from __future__ import annotations

from dataclasses import replace

from genmodels.evaluation.context import Context, Part, reasons
from genmodels.evaluation.neighbours import memorisation
from genmodels.evaluation.protocol import check_count
from genmodels.evaluation.results import Score

PAIRS = 16
"""Number of the closest pairs of a sample and a training image that are kept for display."""


def part(context: Context) -> Part:
    """Compare how close samples and held-out real images are to the training images."""
    images, reference, extractor = context.samples, context.reference, context.extractors[0]
    assert images is not None
    ratio_name, share_name = (extractor.measure(name) for name in ("nearest-train", "copies"))
    if reference.train is None:
        why = "the images compared with may be those the model was trained on; use --split valid to detect copies"
        return Part(absent=dict.fromkeys((ratio_name, share_name), why))
    absent: dict[str, str] = {}
    with reasons(absent, ratio_name, share_name):
        check_count(len(reference.images), reference.images.name)
        train, fake, unseen = (
            context.features(part, extractor) for part in (reference.train, images, reference.images)
        )
        result = memorisation(fake, train, unseen)
        closest = result.order[:PAIRS]
        context.pictures["nearest samples"] = images.pixels[closest]
        context.pictures["nearest train"] = reference.train.pixels[result.partner[closest]]
        protocol = replace(extractor.protocol(context.protocol), train=reference.train.identity)
        ratio = (
            "median distance to the nearest training image, divided by that of held-out real images; "
            "well below 1 indicates copies"
        )
        share = (
            "share of samples closer to a training image than 99 % of held-out real images are; "
            "well above 0.01 indicates copies"
        )
        # Held-out real images have these floors by definition.
        return Part(
            {
                ratio_name: Score(result.ratio, "neither", ratio, protocol, floor=1.0),
                share_name: Score(result.share, "neither", share, protocol, floor=0.01),
            }
        )
    return Part(absent=absent)
