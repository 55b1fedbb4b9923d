"""A component of a pipeline of diffusers that is a program of torch.export.

Exported folders have copies of this file.
"""

from pathlib import Path
from typing import Any, Self

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor
from torch.export.passes import move_to_device_pass

FILE = "program.pt2"
ROWS = 32
"""Largest number of rows that a program computes at a time."""


class Program(ModelMixin):
    """A function of tensors with the same number of rows, of which some may be None.

    Args:
        program: the exported function of up to ROWS rows, on the CPU and in float32.
    """

    def __init__(self, program: Any):
        super().__init__()
        self.program = program
        self.function = program.module()

    @classmethod
    def from_pretrained(cls, folder: str, torch_dtype: torch.dtype | None = None, **_: Any) -> Self:  # type: ignore[override]
        """Load the program in a folder.

        Raises:
            ValueError: for a type other than float32.
        """
        return cls(torch.export.load(Path(folder) / FILE)).to(torch_dtype or torch.float32)

    def forward(self, *inputs: Tensor | None) -> Any:
        """Apply the function to tensors (N, ...): a tensor (N, ...), or a tuple of tensors and None."""
        given = [i for i, value in enumerate(inputs) if value is not None]
        parts = []
        for rows in zip(*(inputs[i].split(ROWS) for i in given), strict=True):  # type: ignore[union-attr]
            chunk: list[Tensor | None] = [None] * len(inputs)
            for i, value in zip(given, rows, strict=True):
                chunk[i] = value
            parts.append(self.function(*chunk))
        if isinstance(parts[0], Tensor):
            return torch.cat(parts)
        return tuple(None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True))

    def to(self, *args: Any, **kwargs: Any) -> Self:  # type: ignore[override]
        """Move the program to another device.

        Raises:
            ValueError: for a type other than float32.
        """
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if dtype not in (None, torch.float32):
            raise ValueError(f"this pipeline computes in float32, got {dtype}: leave out torch_dtype")
        if device is not None and device != self.device:
            self.program = move_to_device_pass(self.program, device)
            self.function = self.program.module()
        return self
