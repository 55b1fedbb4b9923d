"""Cost of models against closed forms and known amounts. Measuring does not change a model."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from tiny_model import Asked, AskedConfig, OnlySamples, Tiny, TinyConfig
from torch import Tensor, nn

import genmodels
from genmodels.conditions import Condition
from genmodels.evaluation import cost
from genmodels.evaluation.cost import cost_scores, machine, peak_memory, sampling_operations, training_operations
from genmodels.evaluation.results import Score
from genmodels.types import Batch, Noise

CPU = torch.device("cpu")


def scores_of(model: Tiny, **options: Any) -> dict[str, Score]:
    found = cost_scores(model, batch_size=2, options=options, seconds=0.0)
    assert found.absent == {}
    return found.scores


class Net(Tiny):
    """Model with a convolution, dropout, a linear layer, and statistics updated by its forward."""

    def __init__(self, config: TinyConfig):
        super().__init__(config)
        self.first = nn.Conv2d(3, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.last = nn.Linear(5, 3)

    def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
        hidden = nn.functional.dropout(self.norm(self.first(batch.images)), 0.5, self.training)
        return (self.last(hidden.movedim(1, 3)) - batch.images.movedim(1, 3)).square().mean(), {}


class Pair(Net):
    """Model with two turns: one uses the decoder only, the other the whole network."""

    turns = ("critic", "generator")

    def parameters_for(self, turn: str) -> Any:
        return (self.last if turn == "critic" else self.first).parameters()


class Stepwise(Tiny):
    """Generator whose decoder runs once per step and whose first layer runs once per sample."""

    def __init__(self, config: TinyConfig):
        super().__init__(config)
        self.start = nn.Linear(4, 4)

    def sample(self, noise: Noise, condition: Condition, options: Any) -> Tensor:
        latents = self.start(noise.normal(4))
        for _ in range(options.steps):
            image = self._decode(latents)
            latents = latents + image.mean()
        return image


class Gained(nn.Module):
    """Module with children and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.inner = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x * self.gain)


def test_operations_of_sampling_in_closed_form() -> None:
    scores = scores_of(Tiny(TinyConfig()))
    assert scores["sample-flops"].value == 2 * 4 * 12  # a multiply-add is two
    assert scores["network-evaluations"].value == 1
    assert scores["parameters"].value == 4 * 12 + 12
    assert scores_of(Stepwise(TinyConfig()), steps=7)["sample-flops"].value == 2 * 4 * 4 + 7 * 2 * 4 * 12


def test_operations_of_a_training_step_in_closed_form() -> None:
    pixels, conv, linear = 16 * 16, 2 * 27 * 5, 2 * 5 * 3
    # Backward: the convolution needs no gradient of its input; the linear layer needs both.
    assert training_operations(Net(TinyConfig())) == pixels * (2 * conv + 3 * linear)
    # The turn of the critic needs one gradient, that of the generator two.
    critic, generator = conv + 2 * linear, 2 * conv + 2 * linear
    assert training_operations(Pair(TinyConfig())) == pixels * (critic + generator)


@pytest.mark.parametrize("steps", [1, 7])
def test_network_evaluations_are_calls_of_the_most_called_layer(steps: int) -> None:
    assert scores_of(Stepwise(TinyConfig()), steps=steps)["network-evaluations"].value == steps


def test_any_module_that_owns_parameters_counts() -> None:
    gained = Gained()
    model = nn.Sequential(nn.Linear(2, 2), gained, gained, nn.ReLU(), nn.ReLU(), nn.ReLU())
    assert sampling_operations(model, lambda: model(torch.ones(1, 2)))[1] == 2
    assert not any(module._forward_hooks for module in model.modules())


def test_attention_is_counted_on_every_device() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    x = torch.randn(2, 10, 16)
    with torch.inference_mode():
        found = sampling_operations(layer, lambda: layer(x))[0]
    projections, attention, mlp = 10 * 4 * 16 * 16, 2 * 10 * 10 * 16, 10 * 2 * 16 * 32
    assert found == 2 * 2 * (projections + attention + mlp)
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("kind", [Net, Pair])
def test_measuring_leaves_no_trace(kind: type[Net]) -> None:
    model = kind(TinyConfig()).train()
    model.norm.eval()
    model.start_frozen = nn.Linear(2, 2).requires_grad_(False)
    before = copy.deepcopy(model)
    state = torch.get_rng_state()
    found = cost_scores(model, batch_size=2, options={}, seconds=0.0)
    assert len(found.scores) == 6
    assert found.absent == {}
    assert torch.equal(torch.get_rng_state(), state)
    for (name, value), old in zip(model.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(value, old), name
    for parameter, old in zip(model.parameters(), before.parameters(), strict=True):
        assert parameter.grad is None
        assert parameter.requires_grad == old.requires_grad
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert not any(module._forward_hooks for module in model.modules())


def test_a_real_family_costs_the_same_every_time() -> None:
    kind = genmodels.family("vae")
    small = dict(channels=(16, 24), encoder_blocks=(1, 1), decoder_blocks=(1, 1), latent_dim=8, mixture=2)
    model = kind(kind.Config(size=32, **small))
    images = torch.rand(32, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    model.initialise([images])
    model.calibrate([images])
    first, second = (cost_scores(model, batch_size=4, options={}, seconds=0.0).scores for _ in range(2))
    for name in ("parameters", "train-flops", "sample-flops", "network-evaluations"):
        assert first[name] == second[name]
    assert first["network-evaluations"].value == 1
    assert first["train-flops"].value > 3 * first["sample-flops"].value > 0


def test_a_conditional_model_is_trained_with_its_kind_of_condition() -> None:
    seen: list[Condition] = []

    class Watched(Asked):
        def loss(self, batch: Batch, turn: str) -> tuple[Tensor, dict[str, Tensor]]:
            seen.append(batch.condition)
            assert batch.images.min() >= -1
            assert batch.images.max() <= 1
            return super().loss(batch, turn)

    training_operations(Watched(AskedConfig()))
    assert torch.equal(seen[0].attributes, torch.zeros(cost.FEW, 2))
    assert torch.equal(seen[0].labels, torch.full((cost.FEW,), -1))
    assert cost.unknown(Tiny(TinyConfig()), 3) == Condition()


def test_only_speed_and_memory_depend_on_the_machine() -> None:
    model = Tiny(TinyConfig())
    scores = scores_of(model)
    with_machine = {name for name, score in scores.items() if score.protocol.machine}
    assert with_machine == {"images-per-second", "memory"}
    assert scores["memory"].protocol.n == 2
    assert {(score.group, score.protocol.size) for score in scores.values()} == {("cost", 16)}
    assert machine(model).endswith(f"{torch.get_num_threads()} threads, float32")
    assert {name: score.better for name, score in scores.items() if score.better != "lower"} == {
        "parameters": "neither",
        "images-per-second": "higher",
    }


def test_speed_is_that_of_the_median_batch() -> None:
    class Slow(Tiny):
        pauses = iter([0.3, 0.05, 0.05, 0.2, 0.05, 0.05, 0.05])  # counted, warm-up, then five that are timed

        def sample(self, noise: Noise, condition: Condition, options: Any) -> Tensor:
            time.sleep(next(self.pauses))
            return super().sample(noise, condition, options)

    speed = cost_scores(Slow(TinyConfig()), batch_size=8, options={}, seconds=0.36).scores["images-per-second"]
    assert speed.value == pytest.approx(8 / 0.05, rel=0.25)


def test_memory_sees_what_is_held_for_a_moment() -> None:
    @dataclass(frozen=True)
    class Sizes(TinyConfig):
        megabytes: int = 1

    class Hungry(Tiny):
        Config: ClassVar[type] = Sizes

        def __init__(self, config: Sizes):
            super().__init__(config)
            self.register_buffer("table", torch.ones(2**20), persistent=False)  # 4 MiB

        def sample(self, noise: Noise, condition: Condition, options: Any) -> Tensor:
            parts = [torch.ones(2**18) for _ in range(self.config.megabytes)]
            time.sleep(0.03)
            return super().sample(noise, condition, options) + 0 * parts[0][0]

    for megabytes in (64, 96):  # what the first freed does not hide the second
        model = Hungry(Sizes(megabytes=megabytes))
        memory = cost_scores(model, batch_size=2, options={}, seconds=0.0).scores["memory"]
        assert memory.value / 2**20 == pytest.approx(4 + megabytes, rel=0.2)
        assert memory.unit == "bytes"
    assert peak_memory(lambda: None, CPU)[0] < 2**22


def test_what_cannot_be_measured_says_why() -> None:
    model = OnlySamples(TinyConfig())
    assert cost_scores(model, batch_size=2, options={}, seconds=0.0).absent == {
        "network-evaluations": "no layer with weights is called as a module"
    }
    model.requires_grad_(False)
    absent = cost_scores(model, batch_size=2, options={}, seconds=0.0).absent
    assert absent["train-flops"] == "the parameters of turn 'model' are frozen"

    class Unfitted(Tiny):
        def sample(self, noise: Noise, condition: Condition, options: Any) -> Tensor:
            raise ValueError("not fitted yet")

    found = cost_scores(Unfitted(TinyConfig()), batch_size=2, options={}, seconds=0.0)
    assert set(found.scores) == {"parameters", "train-flops"}
    assert set(found.absent) == {"sample-flops", "network-evaluations", "memory", "images-per-second"}
    assert set(found.absent.values()) == {"not fitted yet"}
    with pytest.raises(ValueError, match="unknown sampling option 'step'"):
        cost_scores(model, options={"step": 3})
