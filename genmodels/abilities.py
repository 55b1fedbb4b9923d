"""What models can do: a table of abilities, with the methods and the command of each.

`model.can("inpaint")` returns whether a model has an ability. Training, evaluation, the command
line and the model card use this table and never the type of a model.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ability:
    """One thing that a model can do.

    Attributes:
        name: what `Model.can` takes.
        methods: methods and properties that a model with this ability has.
        description: what such models do, as a phrase that follows "they".
        command: the command that offers it, or None.
    """

    name: str
    methods: tuple[str, ...]
    description: str
    command: str | None = None


ABILITIES = (
    Ability("sample", ("sample",), "sample images", "sample"),
    Ability("encode", ("encode", "decode", "latent_shape"), "encode images as latents and decode them"),
    Ability("quantise", ("encode", "codebook_size"), "encode images as codes of a finite codebook"),
    Ability("vectors", ("vectors", "decode_vectors", "vector_shape"), "return the vectors that they quantise"),
    Ability("prior", ("latents_name", "scaled"), "model the latents of a codec"),
    Ability("reconstruct", ("reconstruct",), "reconstruct images", "reconstruct"),
    Ability("invert", ("invert", "reconstruct"), "reconstruct images by a search for their latents", "reconstruct"),
    Ability("inpaint", ("inpaint",), "complete images of which a part is known", "inpaint"),
    Ability("interpolate", ("interpolate",), "interpolate between samples", "interpolate"),
    Ability("interpolate_prompts", ("interpolate_prompts",), "interpolate between prompts", "interpolate --prompts"),
    Ability("morph", ("morph",), "interpolate between given images", "interpolate --images"),
    Ability("edit", ("edit",), "edit images by adding and removing noise", "edit"),
    Ability("trajectory", ("trajectory",), "denoise step by step", "trajectory"),
    Ability(
        "latent_directions",
        ("draw_latents", "find_latents", "from_latents"),
        "make an image from one vector, whose space has directions of attributes",
        "traverse",
    ),
    Ability("bits_per_dim", ("bits_per_dim", "likelihood_kind"), "compute the likelihood of images", "evaluate"),
    Ability("bits_per_token", ("bits_per_token",), "compute the likelihood of codes", "evaluate"),
    Ability("log_probability", ("log_probability",), "compute the probability of what they sample"),
    Ability("denoising_losses", ("denoising_losses",), "compute the loss of each image under given noise"),
    Ability("denoising_error", ("denoising_error",), "compute the error of removing noise", "scaling"),
    Ability("embed", ("embed_images", "embed_texts"), "embed images and sentences in one space", "retrieve"),
    Ability("tokenize", ("tokenize", "tokenizer"), "convert sentences to tokens"),
    Ability("converse", ("read_conversations",), "learn from conversations"),
    Ability("complete", ("complete",), "continue sentences"),
    Ability("answer", ("answer", "stream"), "answer questions about images", "ask"),
    Ability("stages", ("stages",), "divide their loss into stages of blocks", "train"),
    Ability("extend", ("extended_config", "extend_from"), "go on at another size with the weights of one size"),
    Ability("resize", ("at_size",), "encode images of another size with the same weights"),
    Ability("measure", ("measure",), "report metrics of their own on held-out images", "evaluate"),
)
"""Every ability. A new one is a row here, a method of the models that have it, and a command."""


def ability(name: str) -> Ability:
    """Return the ability called `name`.

    Raises:
        ValueError: if there is none of that name.
    """
    for row in ABILITIES:
        if row.name == name:
            return row
    raise ValueError(f"unknown ability {name!r}; known: {', '.join(row.name for row in ABILITIES)}")
