"""Memory and time per device of transformers of 0.1 to 8 B parameters, estimated on paper.

    python benchmarks/parallel_plan.py

Nothing is measured. The table of docs/parallel.md is the output, with these formulas, in bytes and
FLOPs. P: parameters, D: width, L: blocks, T: tokens of an image, b: images of a micro-batch on one
process, m: micro-batches, s: stages, t: parts (tensor parallelism), c: shards (FSDP; 1 without).

- states = 20 P / (s t c): weights, gradients, two moments of AdamW and the average, 4 bytes each.
- complete = 4 P: each process keeps one complete average for display, if the model is divided.
- gathered = 2 * 4 P / (L t), of two blocks, with FSDP.
- activations = b T D L (10 + 24 / t) (arXiv 2205.05198 with FlashAttention, 16 bits). A stage holds
  L / s blocks, for up to s micro-batches (1F1B). With recomputation: 2 b T D L, and one block.
- FLOPs of a step = (6 P + 12 L D T) b T m for each copy of the model, 4 / 3 of it if recomputed,
  divided by s t and by PEAK x EFFICIENCY, times 1 + (s - 1) / m, in which stages wait.
- tensor parallelism: 4 all-reduces of 2 b T D bytes per block and micro-batch, each of which sends
  2 (t - 1) / t of them through a link of BANDWIDTH. They are not overlapped.
- FSDP: weights are gathered twice and gradients are reduced once, 3 * 4 P / (s t) (c - 1) / c bytes
  per step or, without stages, per micro-batch. They overlap, so the longer of both counts.
"""

from __future__ import annotations

from dataclasses import dataclass

PEAK = 989e12
"""FLOP/s of an H100 or H200 in bf16."""
EFFICIENCY = 0.4
"""Assumed fraction of it that matrix products reach."""
BANDWIDTH = 450e9
"""Bytes per second of NVLink in one direction."""
TOKENS = 256
"""16 x 16 patches or codes."""


@dataclass(frozen=True)
class Plan:
    """A model and how eight devices divide it."""

    width: int
    depth: int
    micro: int
    """b."""
    batches: int = 1
    """m."""
    stages: int = 1
    parts: int = 1
    shards: int = 1
    copies: int = 8
    """Groups with different images: the shards, or copies without FSDP."""
    recompute: bool = False

    @property
    def parameters(self) -> int:
        """P of the blocks: 4 D^2 for attention and 8 D^2 for the MLP."""
        return 12 * self.depth * self.width**2

    @property
    def divides(self) -> bool:
        """Whether processes hold parts of the model."""
        return self.stages * self.parts * self.shards > 1

    def memory(self) -> float:
        """Bytes on one device."""
        p, each = self.parameters, self.micro * TOKENS * self.width
        states = 20 * p / (self.stages * self.parts * self.shards)
        complete = 4 * p if self.divides else 0
        gathered = 8 * p / (self.depth * self.parts) if self.shards > 1 else 0
        block = each * (10 + 24 / self.parts)
        activations = 2 * each * self.depth + block if self.recompute else block * self.depth
        return states + complete + gathered + activations

    def seconds(self) -> float:
        """Seconds of a step."""
        p, tokens = self.parameters, self.micro * self.batches * TOKENS
        operations = (6 * p + 12 * self.depth * self.width * TOKENS) * tokens * (4 / 3 if self.recompute else 1)
        computing = operations / (self.stages * self.parts) / (PEAK * EFFICIENCY)
        computing *= 1 + (self.stages - 1) / self.batches
        reduced = 4 * 2 * tokens * self.width * self.depth / self.stages * 2 * (self.parts - 1) / self.parts
        times = self.batches if self.stages == 1 else 1
        sent = 3 * 4 * p / (self.stages * self.parts) * (self.shards - 1) / self.shards * times
        return max(computing + reduced / BANDWIDTH, sent / BANDWIDTH)

    def images(self) -> float:
        """Images per second of all eight devices."""
        return self.micro * self.batches * self.copies / self.seconds()

    def describe(self) -> str:
        """How the model is divided."""
        ways = [
            (f"{self.stages} stages", self.stages),
            (f"{self.parts} parts", self.parts),
            (f"{self.shards} shards", self.shards),
        ]
        used = [name for name, count in ways if count > 1] or ["8 copies"]
        return " x ".join(used) + (", recompute" if self.recompute else "")


PLANS = {
    "0.1 B": [Plan(768, 14, 128)],
    "0.3 B": [Plan(1024, 24, 64), Plan(1024, 24, 64, shards=8)],
    "1 B": [Plan(1792, 26, 64), Plan(1792, 26, 64, shards=8)],
    "3 B": [
        Plan(2560, 38, 64, shards=8, recompute=True),
        Plan(2560, 38, 64, parts=2, shards=4, copies=4, recompute=True),
        Plan(2560, 38, 16, batches=8, stages=2, shards=4, copies=4),
    ],
    "8 B": [
        Plan(4096, 40, 32, shards=8, recompute=True),
        Plan(4096, 40, 32, parts=2, shards=4, copies=4, recompute=True),
        Plan(4096, 40, 8, batches=16, stages=4, shards=2, copies=2, recompute=True),
        Plan(4096, 40, 8, batches=16, stages=2, parts=4, copies=1, recompute=True),
    ],
}
"""Divisions of one machine with eight devices."""


def main() -> None:
    """Print the table."""
    print("| size | width, blocks | division of 8 GPUs | batch | GB per GPU | seconds per step | images/s |")
    print("|---|---|---|---|---|---|---|")
    for size, plans in PLANS.items():
        for plan in plans:
            batch = plan.micro * plan.batches * plan.copies
            print(
                f"| {size} | {plan.width}, {plan.depth} | {plan.describe()} | {batch:,} | {plan.memory() / 1e9:.0f} | "
                f"{plan.seconds():.2f} | {plan.images():,.0f} |"
            )


if __name__ == "__main__":
    main()
