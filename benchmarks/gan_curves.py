"""Plot critic scores, coverage and memorisation of GAN runs over time, from their metrics.

    python benchmarks/gan_curves.py runs/gan runs/dcgan --out docs/results/gan-30/curves.png

Each run is a column. The first row shows the critic's scores of training faces, held-out faces and
samples, relative to the mean of the scores of training faces and samples. The second row shows the
coverage of real faces by samples. The third row shows how far the critic has memorised its training
faces: 0 if held-out faces score like training faces, 1 if they score like samples.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def read(run: Path) -> list[dict[str, float]]:
    """Read the lines of RUN/metrics.jsonl that contain critic scores."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line.get("critic/seen") is not None]
    if not lines:
        raise SystemExit(f"{run}: no critic scores in metrics.jsonl: train with --evaluate-every 500")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    size = (5 * len(args.runs), 7.5)
    figure, axes = plt.subplots(3, len(args.runs), figsize=size, sharey="row", sharex="col", squeeze=False)
    for column, run in zip(axes.T, args.runs, strict=True):
        lines = read(run)
        minutes = [line["elapsed"] / 60 for line in lines]
        middle = [(line["critic/seen"] + line["critic/generated"]) / 2 for line in lines]
        for kind, label in (("seen", "training faces"), ("held_out", "held-out faces"), ("generated", "samples")):
            scores = [line[f"critic/{kind}"] - zero for line, zero in zip(lines, middle, strict=True)]
            column[0].plot(minutes, scores, label=label)
        column[1].plot(minutes, [line.get("coverage_faces_n512") for line in lines], color="tab:purple")
        column[2].plot(minutes, [line["critic/memorised"] for line in lines], color="tab:red")
        column[0].set_title(run.name)
        column[0].set_yscale("symlog", linthresh=0.1)
        column[2].set_xlabel("minutes")
    axes[0, 0].set_ylabel("critic score")
    axes[0, 0].legend()
    axes[1, 0].set_ylabel("coverage (512 samples)")
    axes[2, 0].set_ylabel("memorised")
    axes[2, 0].set_ylim(-0.1, 1)
    figure.tight_layout()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=80)


if __name__ == "__main__":
    main()
