"""Export of any diffusion model as a custom pipeline of diffusers: programs of torch.export and the
modules that sample with them."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from genmodels.base import Generator
from genmodels.conditions import Condition, Text
from genmodels.diffusion import ddpm, process, solvers
from genmodels.diffusion.model import Diffusion
from genmodels.exchange import pipeline, program
from genmodels.exchange.clip_layout import tokenizer_for_transformers
from genmodels.exchange.program import FILE, ROWS
from genmodels.latent import Latent
from genmodels.nn.conditioning import Conditioner, Embedded
from genmodels.text import TOKENIZER
from genmodels.writing import write_json, write_text

COPIED: tuple[ModuleType, ...] = (process, ddpm, solvers)
"""Modules of genmodels that the pipeline imports, and that do not import others."""
PACKAGE, PREFIX = "genmodels.diffusion.", ".genmodels_"
"""Where these modules are imported from, here and in an exported folder."""


class Denoise(nn.Module):
    """The denoiser as a function of tensors."""

    def __init__(self, prior: Diffusion):
        super().__init__()
        self.prior = prior
        prior.process.alpha(torch.zeros(1))  # tables of a DDPM must not be computed while it is traced

    def forward(
        self, x_t: Tensor, t: Tensor, to: Tensor | None, pooled: Tensor | None, tokens: Tensor | None
    ) -> Tensor:
        """x_t (N, C, H, W), times (N, 1, 1, 1) and an embedded condition -> x_0 (N, C, H, W)."""
        mask = None if tokens is None else torch.ones_like(tokens[:, :, 0], dtype=torch.bool)
        return self.prior.denoise(x_t, t, None if pooled is None else Embedded(pooled, tokens, mask), to)[0]


class Embed(nn.Module):
    """The conditioner as a function of tensors."""

    def __init__(self, conditioner: Conditioner):
        super().__init__()
        self.conditioner = conditioner

    def forward(
        self, attributes: Tensor | None, labels: Tensor | None, ids: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Attributes (N, K), labels (N,), -1 if unknown, and ids (N, L) that are padded with end
        tokens -> pooled (N, D) and tokens (N, L, W). None is passed for what the model lacks."""
        n, device = next((x.shape[0], x.device) for x in (attributes, labels, ids) if x is not None)
        text = None if ids is None else Text(ids, torch.ones_like(ids, dtype=torch.bool))
        embedded = self.conditioner(Condition(attributes, labels, text), n, device)
        return embedded.pooled, embedded.tokens


class Decode(nn.Module):
    """The codec as a function of tensors."""

    def __init__(self, model: Latent):
        super().__init__()
        self.model = model

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (N, C, H, W) -> images (N, 3, H, W) in [-1, 1]."""
        decoded: Tensor = self.model.decode(self.model.prior.as_latents(latents))
        return decoded.clamp(-1, 1)


def write_custom_pipeline(model: Generator, prior: Diffusion, folder: Path) -> None:
    """Write a custom pipeline into an empty folder: programs, and the code that samples with them.

    Args:
        model: the model.
        prior: the part that denoises: the model itself, or that of a model over a codec.
        folder: receives model_index.json, pipeline.py with the modules that it imports, and the
            components denoiser/, conditioner/, decoder/ and tokenizer/, as far as there are any.

    Raises:
        ValueError: for text without a text encoder, or an operation that torch.export lacks.
    """
    if prior.conditions.text.vocabulary and not prior.conditions.text.encoder:
        raise ValueError("this model has text without a text encoder, so that no tokenizer can be exported with it")
    index: dict[str, Any] = {
        "_class_name": ["pipeline", pipeline.GenmodelsPipeline.__name__],
        "denoiser": ["program", "Program"],
        "conditioner": [None, None],
        "decoder": [None, None],
        "tokenizer": [None, None],
        "settings": settings_of(prior),
    }
    twin = copy.deepcopy(prior).float().cpu().eval()
    inputs = condition_inputs(twin)
    pooled, tokens = None, None
    if twin.condition is not None:
        with torch.no_grad():
            pooled, tokens = Embed(twin.condition)(*inputs)
        write_program(Embed(twin.condition), inputs, folder / "conditioner")
        index["conditioner"] = index["denoiser"]
    if prior.conditions.text.encoder:
        tokenizer = tokenizer_for_transformers(prior.tokenizer, folder)
        (folder / TOKENIZER).unlink()
        tokenizer.save_pretrained(folder / "tokenizer")
        index["tokenizer"] = ["transformers", "CLIPTokenizer"]
    x_t, t = torch.zeros(2, *twin.shape), torch.full((2, 1, 1, 1), (twin.process.start + twin.process.end) / 2)
    write_program(Denoise(twin), (x_t, t, t if twin.process.jumps else None, pooled, tokens), folder / "denoiser")
    if isinstance(model, Latent):
        whole = copy.deepcopy(model)
        whole.codec = copy.deepcopy(model.codec)
        write_program(Decode(whole.float().cpu().eval()), (x_t,), folder / "decoder")
        index["decoder"] = index["denoiser"]
    write_text(folder / "pipeline.py", standalone(pipeline))
    for module in COPIED:
        write_text(folder / f"{PREFIX[1:]}{module.__name__.rpartition('.')[2]}.py", standalone(module))
    write_json(folder / "model_index.json", index, indent=2)


def settings_of(prior: Diffusion) -> dict[str, Any]:
    """Return the settings of the pipeline, see `pipeline.GenmodelsPipeline`."""
    options, conditions = prior.options(), prior.conditions
    return {
        "process": prior.config.process,
        "process_settings": dataclasses.asdict(prior.process),  # type: ignore[call-overload]
        "shape": list(prior.shape),
        "attributes": list(conditions.attributes),
        "classes": conditions.classes,
        "class_names": list(conditions.class_names),
        "solver": options.solver,
        "steps": options.steps,
    }


def condition_inputs(prior: Diffusion) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the inputs of `Embed` for two samples without a condition."""
    c = prior.conditions
    conditioner: Any = prior.condition
    return (
        torch.zeros(2, len(c.attributes)) if c.attributes else None,
        torch.full((2,), -1) if c.classes else None,
        conditioner.text.empty.expand(2, -1).contiguous() if c.text.encoder else None,
    )


def write_program(function: nn.Module, inputs: tuple[Tensor | None, ...], folder: Path) -> None:
    """Export a function of tensors with the same number of rows, and the class that loads it.

    Args:
        function: the function, on the CPU and in eval mode.
        inputs: an example of at least two rows.
        folder: new folder.

    Raises:
        ValueError: for an operation that torch.export does not support.
    """
    rows = torch.export.Dim("rows", min=1, max=ROWS)
    shapes = tuple(None if value is None else {0: rows} for value in inputs)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            exported = torch.export.export(function, inputs, dynamic_shapes=(*shapes,), strict=False)
        except (RuntimeError, torch._dynamo.exc.UserError) as error:
            line = next(iter(str(error).splitlines()), "")
            raise ValueError(f"torch.export does not support the {folder.name} of this model: {line[:200]}") from error
        drop_unused(exported)
        folder.mkdir()
        torch.export.save(exported, folder / FILE)
    write_text(folder / "program.py", inspect.getsource(program))


def drop_unused(exported: Any) -> None:
    """Remove the weights that an exported program does not read, such as those of an encoder."""
    specs = exported.graph_signature.input_specs
    inputs = [node for node in exported.graph.nodes if node.op == "placeholder"]
    for node, spec in list(zip(inputs, specs, strict=True)):
        if spec.target in exported.state_dict and not node.users:
            exported.graph.erase_node(node)
            specs.remove(spec)
            del exported.state_dict[spec.target]
    exported.graph_module.recompile()


def standalone(module: ModuleType) -> str:
    """Return the source of a module, which imports copies of others beside it."""
    return inspect.getsource(module).replace(f"from {PACKAGE}", f"from {PREFIX}")
