"""The command that prunes grouped heads.

Signatures and docstrings are what `--help` prints. Slow imports are inside the functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from genmodels.cli.arguments import check_empty, load
from genmodels.cli.real_images import EvaluationFlags, real_images
from genmodels.usage import UsageError

if TYPE_CHECKING:
    from genmodels.types import Batch


def prune(
    run: Positional[str],
    out: Positional[Path],
    data: str | None = None,
    root: Path | None = None,
    batches: int = 16,
    batch_size: int = 32,
) -> None:
    """Keep one attention head of each group, and write the smaller model to a new folder.

    The model must have been trained with grouped heads (--model.transformer.head-groups.count).
    Batches of training images vote: in each group, the head with the most votes stays.

    Args:
        run: run or model folder, toyfaces/NAME, or an id on the Hub.
        out: new or empty folder for the smaller model.
        data: images that vote: a data set by name or a packed directory. By default, what the run
            was trained on.
        root: where the files of the data set are. By default, that of the run.
        batches: number of batches that vote.
        batch_size: number of images of a batch.
    """
    from genmodels.pruning import formed_groups, strongest, vote, without_heads

    if min(batches, batch_size) < 1:
        raise UsageError(f"--batches and --batch-size must be at least 1, got {batches} and {batch_size}")
    check_empty(out)
    model = load(run)
    groups = formed_groups(model)
    votes = vote(model, groups, _batches(model, run, data, root, batches, batch_size))
    kept = {name: strongest(each, votes[name]) for name, each in groups.items()}
    pruned = without_heads(model, kept)
    for name, each in groups.items():
        lines = ", ".join(
            f"{'+'.join(map(str, heads))} ({'/'.join(f'{float(votes[name][head]):.0f}' for head in heads)})"
            for heads in each.heads()
        )
        print(f"{name}: {lines} votes; {', '.join(map(str, kept[name]))} stay")
    pruned.save_pretrained(out)
    before, after = (sum(p.numel() for p in each.parameters()) for each in (model, pruned))
    print(f"{after:,} of {before:,} parameters remain in {out}: genmodels info {out}")


def _batches(
    model: Any, run: str, data: str | None, root: Path | None, batches: int, batch_size: int
) -> Iterator[Batch]:
    """Yield batches of training images, without conditions."""
    from genmodels.data import open_data
    from genmodels.data.batches import image_batches
    from genmodels.evaluation.cost import unknown
    from genmodels.types import Batch, Noise

    real = real_images([run], EvaluationFlags(data=data, root=root))
    images = open_data(real.data, real.root, model.config.size, real.crop).split("train")
    first = 0
    for part in image_batches(images, batch_size, batches * batch_size, model.device, spread=True):
        noise = Noise.for_images(0, range(first, first + len(part)), model.device)
        first += len(part)
        yield Batch(part, noise, unknown(model, len(part)), progress=0.5)
