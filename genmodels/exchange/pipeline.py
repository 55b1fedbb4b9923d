"""Pipeline of diffusers for a model that genmodels exported. It does not need genmodels.

Exported folders have copies of this file and of the modules of genmodels that it imports.
"""

from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from genmodels.diffusion.ddpm import DDPM
from genmodels.diffusion.process import EDM, Flow, MeanFlow, Process
from genmodels.diffusion.solvers import Solver, dpm, euler, heun, jump, schedule, unipc

PROCESSES: dict[str, type[Process]] = {"flow": Flow, "meanflow": MeanFlow, "edm": EDM, "ddpm": DDPM}
SOLVERS: dict[str, Solver] = {"unipc": unipc, "dpm": dpm, "heun": heun, "euler": euler, "jump": jump}
OUTPUTS = ("pil", "np", "pt", "latent")


class GenmodelsPipeline(DiffusionPipeline):
    """Samples images from noise.

    Args:
        denoiser: (x_t, t, r, pooled, tokens) -> x_0, where r is the end of a step of a mean flow,
            and the embedded condition is pooled (N, D) and tokens (N, L, W). Each can be None.
        conditioner: (attributes, labels, ids) -> (pooled, tokens), or None for an unconditional
            model.
        decoder: latents (N, C, H, W) -> images (N, 3, H, W) in [-1, 1], or None for pixels.
        tokenizer: the CLIPTokenizer of a model with text, or None.
        settings: process with its settings, shape (C, H, W), attributes, classes, class_names, and
            the default solver and steps.
    """

    _optional_components = ["conditioner", "decoder", "tokenizer"]  # noqa: RUF012

    def __init__(
        self,
        denoiser: nn.Module,
        conditioner: nn.Module | None = None,
        decoder: nn.Module | None = None,
        tokenizer: Any = None,
        settings: dict[str, Any] | None = None,
    ):
        super().__init__()
        assert settings is not None
        self.register_modules(denoiser=denoiser, conditioner=conditioner, decoder=decoder, tokenizer=tokenizer)
        self.register_to_config(settings=settings)
        self.settings = settings
        self.process = PROCESSES[settings["process"]](**settings["process_settings"])

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        *,
        attributes: dict[str, Any] | None = None,
        label: int | str | list[int | str] | None = None,
        batch_size: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
        solver: str | None = None,
        spacing: str | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Sample images.

        Args:
            prompt: a sentence for all images, or one for each.
            negative_prompt: sentence that guidance leads away from, or one for each image.
            attributes: values by name: True, 1 or "yes"; False, -1 or "no"; None or 0 for
                unspecified, as are those that are not named.
            label: name or number of a class for all images, or one for each.
            batch_size: number of images, unless `prompt` or `label` is a list.
            num_inference_steps: steps of the solver; None: the default of the model.
            guidance_scale: w in x_0 = reference + w (x_0 - reference); 1: no guidance.
            solver: unipc, dpm, heun, euler or, for a mean flow, jump; None: the default.
            spacing: spacing of the times: uniform, karras, log-snr or quadratic; None: the default.
            generator: source of the noise.
            latents: standard normal noise (N, C, H, W) in place of that of `generator`.
            output_type: "pil"; "np": float (N, H, W, 3) in [0, 1]; "pt": float (N, 3, H, W) in
                [0, 1]; "latent": what the solver returns.
            return_dict: return an ImagePipelineOutput, not a tuple.

        Raises:
            ValueError: for a condition or setting that the model does not support.
        """
        if output_type not in OUTPUTS:
            raise ValueError(f"output_type {output_type!r}: choose one of {', '.join(OUTPUTS)}")
        given = next((value for value in (prompt, label) if isinstance(value, list)), None)
        n, device = batch_size if given is None else len(given), self._execution_device
        condition = self.embed(n, prompt, attributes, label)
        reference = self.reference(n, negative_prompt, guidance_scale)
        name = solver or self.settings["solver"]
        if name not in SOLVERS or (name == "jump" and not self.process.jumps):
            known = [each for each in SOLVERS if each != "jump" or self.process.jumps]
            raise ValueError(f"solver {name!r}: choose one of {', '.join(known)}")
        times = schedule(self.process, num_inference_steps or self.settings["steps"], spacing)
        shape = (n, *self.settings["shape"])
        noise = randn_tensor(shape, generator, device) if latents is None else latents.to(device)
        if tuple(noise.shape) != shape:
            raise ValueError(f"latents must be {shape}, got {tuple(noise.shape)}")
        with self.progress_bar(total=len(times)) as bar:

            def denoise(x: Tensor, t: float, to: float | None = None) -> Tensor:
                """Predict x_0, guided and clipped."""
                start = x.new_full((n, 1, 1, 1), t)
                end = x.new_full((n, 1, 1, 1), t if to is None else to) if self.process.jumps else None
                x_0: Tensor = self.denoiser(x, start, end, *condition)
                if reference is not None:
                    other = self.denoiser(x, start, end, *reference)
                    x_0 = other + guidance_scale * (x_0 - other)
                bar.update()
                return x_0.clamp(-1, 1) if self.process.clip else x_0

            x = SOLVERS[name](denoise, self.process.noise_scale * noise, times, lambda: torch.zeros_like(noise))
        images = self.finished(x, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def finished(self, x: Tensor, output_type: str) -> Any:
        """Decode what the solver returns, and convert it to `output_type`."""
        if output_type == "latent":
            return x
        images = ((x if self.decoder is None else self.decoder(x)).clamp(-1, 1) + 1) / 2
        if output_type == "pt":
            return images
        array = images.permute(0, 2, 3, 1).cpu().numpy()
        return array if output_type == "np" else self.numpy_to_pil(array)

    # ---- conditions ----

    def embed(
        self,
        n: int,
        prompt: str | list[str] | None = None,
        attributes: dict[str, Any] | None = None,
        label: int | str | list[int | str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Embed the condition of n images: pooled (N, D) and tokens (N, L, W), each of which can be
        None. What is not given is unspecified.

        Raises:
            ValueError: for a condition that the model does not take.
        """
        if prompt is not None and self.tokenizer is None:
            raise ValueError("a prompt was given, and this model was trained without text")
        signs = self._signs(attributes or {})
        numbers = [-1] * n if label is None else [self._number(each) for each in _rows(label, n, "labels")]
        if self.conditioner is None:
            return None, None
        device = self._execution_device
        embedded: tuple[Tensor | None, Tensor | None] = self.conditioner(
            torch.tensor(signs, device=device).expand(n, -1).contiguous() if signs else None,
            torch.tensor(numbers, device=device) if self.settings["classes"] else None,
            None if self.tokenizer is None else self._ids(_rows(prompt or "", n, "prompts")).to(device),
        )
        return embedded

    def reference(
        self, n: int, negative: str | list[str] | None, guidance: float
    ) -> tuple[Tensor | None, Tensor | None] | None:
        """Embed what guidance leads away from, or None without guidance.

        Raises:
            ValueError: for guidance of an unconditional model, or a negative prompt without effect.
        """
        if guidance == 1:
            if negative:
                raise ValueError("negative_prompt has no effect at guidance_scale 1: set guidance_scale, for example 4")
            return None
        if self.conditioner is None:
            raise ValueError(f"guidance_scale {guidance:g} needs a condition, and this model was trained without")
        return self.embed(n, negative)

    def _signs(self, attributes: dict[str, Any]) -> list[float]:
        names = self.settings["attributes"]
        for name in attributes:
            if name not in names:
                raise ValueError(f"unknown attribute {name!r}; this model knows: {', '.join(names) or 'none'}")
        return [_sign(name, attributes.get(name)) for name in names]

    def _number(self, label: int | str) -> int:
        names = [name.casefold() for name in self.settings["class_names"]]
        if str(label).casefold() in names:
            return names.index(str(label).casefold())
        if str(label).isdecimal() and int(label) < self.settings["classes"]:
            return int(label)
        known = ", ".join(self.settings["class_names"]) or f"{self.settings['classes']} classes"
        raise ValueError(f"label {label!r}: this model does not know it; it has {known}")

    def _ids(self, texts: list[str]) -> Tensor:
        """Tokenize texts: (N, L), padded with end tokens."""
        length = self.tokenizer.model_max_length
        for text in texts:
            if (count := len(self.tokenizer(text).input_ids)) > length:
                raise ValueError(f"the prompt {text[:40]!r}... has {count} tokens, and the context is {length}")
        ids: Tensor = self.tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
        return ids


def _rows(value: Any, n: int, what: str) -> list[Any]:
    """Return a list of n values, or the same value n times."""
    if isinstance(value, list) and len(value) != n:
        raise ValueError(f"there are {len(value)} {what} for {n} images: give one, or one for each")
    return value if isinstance(value, list) else [value] * n


def _sign(name: str, value: Any) -> float:
    """Return the value of one attribute as -1, 0 or 1."""
    words = {"True": 1.0, "yes": 1.0, "False": -1.0, "no": -1.0, "None": 0.0}
    try:
        item = getattr(value, "item", None)
        plain = value if item is None else item()  # a scalar of NumPy or torch
        sign = words[str(plain)] if str(plain) in words else float(plain)
    except (TypeError, ValueError, RuntimeError):
        sign = float("nan")
    if sign not in (-1, 0, 1):
        raise ValueError(f"{name}={value!r}: use True, False or None, or 1, -1 or 0")
    return sign
