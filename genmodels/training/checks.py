"""Checks before a run: whether model, data, recipe and run folder fit together."""

from __future__ import annotations

from genmodels.base import Model
from genmodels.conditions import ConditionConfig
from genmodels.data.columns import uncaptioned
from genmodels.data.packed import Packed
from genmodels.nn.low_precision import check_fp8
from genmodels.sampling import processes
from genmodels.training.clock import too_short
from genmodels.training.folder import check_output
from genmodels.training.layout import layout_of
from genmodels.training.pipeline_parallel import check_stages_fit
from genmodels.training.recipe import Recipe
from genmodels.training.shard import check_shardable, sharding_wanted
from genmodels.training.tensor_parallel import check_divisible
from genmodels.training.tracking import check_tracker


def check_fit(model: Model, data: Packed, recipe: Recipe) -> None:
    """Check that the model, the data, the recipe and the run folder fit together.

    Raises:
        ValueError: if they do not.
    """
    model.check_complete()
    if recipe.stages:
        raise ValueError("this run cannot have stages: remove `stages` from the settings")
    check_output(recipe)
    check_tracker(recipe.track)
    if model.whole_batch and recipe.accumulate > 1:
        raise ValueError(
            f"the loss of this {model.kind} compares the images of a batch with each other, so a batch cannot "
            f"be split into micro-batches: remove --accumulate {recipe.accumulate}"
        )
    if model.whole_batch and recipe.batch_size < 2:
        raise ValueError(
            f"the loss of this {model.kind} compares the images of a batch with each other: use a --batch-size of "
            f"at least 2, got {recipe.batch_size}"
        )
    if sharding_wanted(processes().num_processes):
        check_shardable(model)
    check_layout(model, recipe)
    if data.size != model.config.size:
        raise ValueError(
            f"the images have {data.size} px a side and the model {model.config.size}: set --size to match the images"
        )
    if (count := data.counts().get("train", 0)) < model.least_images:
        raise ValueError(
            f"{data.source}: {count:,} training images are too few for this {model.kind}, at least "
            f"{model.least_images:,} are needed"
        )
    if data.latents is not None and model.trained is model:
        raise ValueError(
            f"the data have latents of a codec, and this {model.family} is trained on images: give fit() the data "
            "without them"
        )
    check_classes(model.conditions, data)
    if model.can("converse"):
        check_conversations(data)
    elif model.can("tokenize"):
        check_captions(data)
    elif model.conditions.text.vocabulary and not model.trained.can("tokenize"):
        raise ValueError(
            f"this {model.kind} has no tokenizer, so it cannot be trained on text: remove "
            "--model.condition.text.vocabulary"
        )
    if recipe.minutes is not None and not recipe.resume and recipe.startup > 0.9 * 60 * recipe.minutes:
        raise too_short(recipe.minutes, recipe.startup)


def check_layout(model: Model, recipe: Recipe) -> None:
    """Check that the processes can divide the model as the recipe and the launcher ask for.

    Raises:
        ValueError: if they cannot.
    """
    layout = layout_of(recipe, processes().num_processes)
    if layout.parts > 1:
        check_divisible(model, layout.parts)
    if recipe.mixed_precision == "fp8":
        check_fp8(model)
        if layout.parts > 1:
            raise ValueError(
                "--mixed-precision fp8 does not work with --tensor-parallel: use --pipeline-stages or FSDP"
            )
    if layout.stages > 1:
        check_stages_fit(model, recipe)
    if layout.splits and recipe.mixed_precision == "fp16":
        raise ValueError("--mixed-precision fp16 does not work with --tensor-parallel and --pipeline-stages: use bf16")


def check_captions(data: Packed) -> None:
    """Check that every training image has a caption, stored or from its attributes.

    Raises:
        ValueError: if there are no captions, or images without one; names one of them.
    """
    train = data.split("train")
    if not train.has_captions:
        raise ValueError(
            f"{data.source} has neither captions nor attributes that captions can be written from: add captions.csv "
            "or attributes.csv, and pack the data again"
        )
    if train.text is not None and len(without := uncaptioned(train.text)):
        raise ValueError(
            f"{len(without):,} of {len(train):,} training images of {data.source} have no caption, such as "
            f"{train.names[int(without[0])]}: add captions, or leave these images out"
        )


def check_conversations(data: Packed) -> None:
    """Check that there are conversations about every training image: stored ones, or ones that are
    written from its attributes or captions.

    Raises:
        ValueError: if there are none, or images without one; names one of them.
    """
    train = data.split("train")
    if train.conversations is None:
        return check_captions(data)
    if len(without := uncaptioned(train.conversations)):
        raise ValueError(
            f"{len(without):,} of {len(train):,} training images of {data.source} have no conversation, such as "
            f"{train.names[int(without[0])]}: add conversations, or leave these images out"
        )
    return None


def check_classes(conditions: ConditionConfig, data: Packed) -> None:
    """Check that the data have the classes that a model is conditioned on.

    Raises:
        ValueError: if they have no labels, or other classes.
    """
    count, names = conditions.classes, data.class_names
    if count and data.labels is None:
        raise ValueError(f"{data.source} has no labels to train {count} classes on: remove --model.condition.classes")
    if count and count != len(names):
        raise ValueError(
            f"{data.source} has {len(names):,} classes, not {count:,}: use --model.condition.classes {len(names)}"
        )
    if conditions.class_names and conditions.class_names != names:
        own, other = next(pair for pair in zip(conditions.class_names, names, strict=True) if pair[0] != pair[1])
        raise ValueError(f"the model was trained on other classes than those of {data.source} ({own!r}, not {other!r})")
