"""Training with two processes equals training with one, up to rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ranks import in_two_processes
from test_fit import assert_equal, lines
from tiny import Tiny, TinyPair, faces, recipe, tiny, tiny_experts

from genmodels.distributed import all_reduce_sum
from genmodels.training.fit import fit
from genmodels.training.launch import processes_wanted

ROOT = Path(__file__).parent.parent
LAUNCHER = ["python", "/bin/accelerate", "launch", "--cpu", "--num_processes", "2", "train.py"]
LAUNCHED = {"ACCELERATE_USE_CPU": "True", "MASTER_PORT": "29500"}


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    said = in_two_processes(ROOT / "tests" / "launched.py", tmp_path / "two")
    assert "training" not in said[1]

    for kind, name in ((Tiny, "loss"), (TinyPair, "critic/loss")):
        one = fit(tiny(kind), faces(), recipe(tmp_path / "one" / kind.family))
        two = tmp_path / "two" / kind.family
        assert_equal(one, two, tolerance=2e-5)
        assert [line["step"] for line in lines(two)] == [5, 10, 15, 20]
        for ours, theirs in zip(lines(one), lines(two), strict=True):
            assert ours.keys() == theirs.keys()
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4)
    for choice, name in (("tokens", "experts/max_violation"), ("experts", "experts/dropped")):
        one = fit(tiny_experts(choice), faces(), recipe(tmp_path / "one" / choice, sample_every=20))
        assert_equal(one, tmp_path / "two" / choice, tolerance=1e-4)
        for ours, theirs in zip(lines(one), lines(tmp_path / "two" / choice), strict=True):
            assert ours.keys() == theirs.keys()
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4)


def test_one_process_reduces_to_itself() -> None:
    value = torch.arange(3.0)
    all_reduce_sum(value)
    assert value.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("env", "parent", "count"),
    [
        (LAUNCHED, LAUNCHER, 2),
        (LAUNCHED, ["python", "-m", "accelerate.commands.launch", "--num-processes=3", "--cpu", "train.py"], 3),
        (LAUNCHED | {"WORLD_SIZE": "2"}, LAUNCHER, 1),
        (LAUNCHED | {"OMPI_COMM_WORLD_SIZE": "2"}, LAUNCHER, 1),
        ({"ACCELERATE_USE_CPU": "False", "MASTER_PORT": "29500"}, LAUNCHER, 1),
        (LAUNCHED, ["bash"], 1),
        ({}, ["bash"], 1),
    ],
)
def test_the_launcher_is_taken_at_its_word(env: dict[str, str], parent: list[str], count: int) -> None:
    assert processes_wanted(env, parent) == count


def test_a_launcher_that_does_not_say_how_many() -> None:
    with pytest.raises(ValueError, match="--num_processes"):
        processes_wanted(LAUNCHED, ["python", "/bin/accelerate", "launch", "--cpu", "train.py"])
