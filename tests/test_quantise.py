"""Quantisers against closed forms: levels, gradients, moving averages, restarts of dead codes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genmodels.nn.quantise.base import DECAY, perplexity, rotate, straight_through
from genmodels.nn.quantise.codebook import k_means, nearest
from genmodels.nn.quantise.cosine import CosineCodebook
from genmodels.nn.quantise.ema import NOBODY, RESTARTS, EMACodebook
from genmodels.nn.quantise.frequencies import CodeFrequencies
from genmodels.nn.quantise.fsq import FSQ
from genmodels.nn.quantise.residual import ResidualQuantiser
from genmodels.types import Noise

KINDS = {
    "ema": lambda: EMACodebook(32, 4),
    "cosine": lambda: CosineCodebook(32, 4),
    "fsq": lambda: FSQ((4, 3, 3, 2)),
    "residual": lambda: ResidualQuantiser([EMACodebook(32, 4), EMACodebook(32, 4)]),
}


def maps(n: int = 6, dim: int = 4, side: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, side, side, generator=torch.Generator().manual_seed(seed))


def noise(n: int = 6, seed: int = 0) -> Noise:
    return Noise.for_images(seed, range(n))


def line(values: list[float]) -> Tensor:
    """Make one image with one number per position, (1, 1, 1, len(values))."""
    return torch.tensor(values).view(1, 1, 1, -1)


# ---- every kind ----


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_those_of_the_codes_and_pass_gradients(kind):
    quantiser = KINDS[kind]().train()
    z = maps().requires_grad_()
    found = quantiser(z, noise())
    levels = (2,) if kind == "residual" else ()
    assert found.codes.shape == (6, 3, 3, *levels) and found.codes.dtype == torch.int64
    assert found.codes.min() >= 0 and found.codes.max() < quantiser.codebook_size
    assert torch.equal(found.codes, quantiser.encode(z))
    torch.testing.assert_close(found.vectors, quantiser.decode(found.codes), rtol=0, atol=1e-6)
    (gradient,) = torch.autograd.grad(found.vectors.sum(), z)
    assert (gradient != 0).all()
    # The code of a position does not depend on other positions.
    assert torch.equal(quantiser.encode(z[2:3, :, 1:, :2]), found.codes[2:3, 1:, :2])


@pytest.mark.parametrize("kind", KINDS)
def test_quantisation_is_fp32_under_autocast(kind):
    """The two nearest codes differ by less than half precision can resolve."""
    torch.manual_seed(0)
    quantiser = KINDS[kind]().eval()
    z = 8 + maps() / 100
    if kind in ("ema", "residual"):
        for book in [quantiser] if kind == "ema" else quantiser.codebooks:
            book.codebook.copy_(8 + torch.randn(32, 4) / 100)
    if kind == "cosine":
        quantiser.codebook.data = 8 + torch.randn(32, 4) / 100
    if kind == "fsq":
        z = maps()
    exact = quantiser(z, noise())
    with torch.autocast("cpu", torch.bfloat16):
        found = quantiser(z, noise())
        assert torch.equal(quantiser.encode(z), exact.codes)
    assert found.vectors.dtype == found.loss.dtype == torch.float32
    assert torch.equal(found.codes, exact.codes) and torch.equal(found.vectors, exact.vectors)
    assert len(exact.codes.unique()) > 5


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_wait_for_commit_and_eval_leaves_none(kind):
    quantiser = KINDS[kind]().train()
    before = {name: value.clone() for name, value in quantiser.state_dict().items()}
    quantiser(maps(), noise())
    after = quantiser.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before), "changed before commit"
    quantiser.commit()
    moved = {name: value.clone() for name, value in quantiser.state_dict().items()}
    assert not torch.equal(before["frequency"], moved["frequency"])
    assert quantiser.counts.sum() == 0
    quantiser.eval()(maps(seed=1), noise())
    quantiser.commit()
    assert all(torch.equal(moved[name], value) for name, value in quantiser.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_in_any_order_teach_the_same(kind):
    """Sums and candidates do not depend on how a batch is divided, as two processes need."""
    results = []
    for parts in ([[0, 1, 2, 3, 4, 5]], [[4, 5], [0, 1], [2, 3]]):
        torch.manual_seed(0)
        quantiser = KINDS[kind]().train()
        for book in quantiser.modules():
            if isinstance(book, EMACodebook):
                book.frequency[::2] = 0  # dead: they start again at candidates
        for part in parts:
            quantiser(maps()[part], Noise([noise().seeds[i] for i in part]))
        quantiser.commit()
        results.append(quantiser.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=1e-5, atol=1e-6, msg=name)


def test_stashes_are_buffers_that_are_not_saved():
    quantiser = ResidualQuantiser([EMACodebook(8, 2), EMACodebook(8, 2)])
    buffers = {name for name, _ in quantiser.named_buffers()}
    saved = set(quantiser.state_dict())
    assert {name.rpartition(".")[2] for name in buffers - saved} == {"counts", "sums", "candidates", "keys"}
    assert {name.rpartition(".")[2] for name in saved} == {"codebook", "frequency"}


# ---- gradients through the choice ----


def test_straight_through_is_the_identity_to_gradients():
    points, vectors, g = (torch.randn(5, 3).requires_grad_(i == 0) for i in range(3))
    out = straight_through(points, vectors)
    torch.testing.assert_close(out, vectors)
    assert torch.equal(torch.autograd.grad(out, points, g)[0], g)


def test_the_rotation_trick_rotates_and_scales_the_gradient():
    """The gradient equals that of the rotation matrix that takes a to b in their common plane."""
    points, vectors, g = torch.randn(4, 3), 3 * torch.randn(4, 3), torch.randn(4, 3)
    points.requires_grad_()
    out = rotate(points, vectors)
    torch.testing.assert_close(out, vectors, rtol=0, atol=1e-6)
    (gradient,) = torch.autograd.grad(out, points, g)
    for i in range(4):
        p, v = points[i].detach(), vectors[i]
        a, b = F.normalize(p, dim=0), F.normalize(v, dim=0)
        axis, cosine = torch.linalg.cross(a, b), a @ b
        x, y, z = axis.tolist()
        K = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        R = torch.eye(3) + K + K @ K / (1 + cosine)  # Rodrigues' formula
        torch.testing.assert_close(R @ a, b)
        torch.testing.assert_close(gradient[i], v.norm() / p.norm() * R.T @ g[i], rtol=1e-4, atol=1e-5)


def test_the_rotation_trick_survives_zero_and_opposite_vectors():
    points = torch.tensor([[0.0, 0.0], [1.0, 2.0]], requires_grad=True)
    out = rotate(points, torch.tensor([[1.0, 0.0], [-1.0, -2.0]]))
    out.sum().backward()
    assert out.isfinite().all() and points.grad.isfinite().all()


@pytest.mark.parametrize("kind", [EMACodebook, CosineCodebook])
def test_the_estimator_can_be_chosen(kind):
    torch.manual_seed(0)
    gradients = []
    for estimator in ("straight-through", "rotation"):
        torch.manual_seed(0)
        z = maps().requires_grad_()
        found = kind(32, 4, 0.25, estimator)(z, noise())
        gradients.append(torch.autograd.grad(found.vectors.sum(), z)[0])
    assert not torch.allclose(*gradients, atol=1e-3)


# ---- finite scalars ----


def test_all_codes_of_fsq_make_the_round_trip():
    quantiser = FSQ((8, 5, 5, 5))
    assert quantiser.codebook_size == 1000
    vectors = quantiser.lookup(torch.arange(1000))  # (1000, 4)
    assert len(vectors.unique(dim=0)) == 1000
    assert vectors.min() == -1 and vectors[:, 0].max() == 0.75 and vectors[:, 1:].max() == 1
    # The grid point, seen through the inverse of the bound, is an encoder output that falls on it.
    values = vectors.double() * torch.tensor([4, 2, 2, 2]) + torch.tensor([0.5, 0, 0, 0])
    reach = torch.tensor([7, 4, 4, 4]) * 0.999 / 2
    shift = torch.tensor([math.tan(0.5 / reach[0]), 0, 0, 0])
    points = torch.atanh((values / reach).clamp(-1 + 1e-9, 1 - 1e-9)) - shift
    assert torch.equal(quantiser.assign(points.float()), torch.arange(1000))
    # Digits from 0, the first number fastest: 1, 8, 40, 200.
    assert quantiser.assign(torch.full((1, 4), -9.0)).item() == 0
    assert quantiser.assign(torch.tensor([[9.0, -9, 0, 9]])).item() == 7 + 0 + 2 * 40 + 4 * 200


@pytest.mark.parametrize("L", [2, 3, 4, 5, 8])
def test_fsq_bounds_as_the_paper_does(L):
    quantiser = FSQ((L,))
    h = (L - 1) * (1 - 1e-3) / 2
    offset = 0.5 if L % 2 == 0 else 0.0
    for z in (-30.0, -1.3, -0.2, 0.0, 0.4, 1.1, 30.0):
        expected = math.tanh(z + math.tan(offset / h)) * h - offset
        assert quantiser.bound(torch.tensor([[z]])).item() == pytest.approx(expected, abs=1e-5)
    z = torch.linspace(-9, 9, 2001).unsqueeze(1)
    codes = quantiser.assign(z)
    assert codes.unique().tolist() == list(range(L)) and (codes.diff() >= 0).all()


def test_the_gradient_of_fsq_is_that_of_its_bound():
    quantiser = FSQ((5,))
    z = torch.linspace(-1.5, 1.5, 7).view(1, 1, 1, 7).requires_grad_()
    found = quantiser(z, noise(1))
    assert found.vectors.flatten().tolist() == [-1, -1, -0.5, 0, 0.5, 1, 1]
    assert found.loss == 0
    found.vectors.sum().backward()
    torch.testing.assert_close(z.grad, (1 - torch.tanh(z.detach()) ** 2) * (4 * 0.999 / 2) / 2)


@pytest.mark.parametrize("sizes", [(), (8, 1), (0,)])
def test_too_few_levels_are_refused(sizes):
    with pytest.raises(ValueError, match="fsq needs at least 2 levels for each value"):
        FSQ(sizes)


# ---- codebooks ----


def test_the_nearest_entry():
    points, codebook = torch.randn(50, 3), torch.randn(20, 3)
    assert torch.equal(nearest(points, codebook), torch.cdist(points, codebook).argmin(1))


def test_the_running_mean_by_hand():
    quantiser = EMACodebook(2, 1).train()
    quantiser.codebook.copy_(torch.tensor([[0.0], [10.0]]))
    found = quantiser(line([1, -1, 2, 11]), noise(1))
    assert found.codes.flatten().tolist() == [0, 0, 0, 1]
    assert found.metrics["commitment"] == pytest.approx((1 + 1 + 4 + 1) / 4)
    assert found.loss == pytest.approx(0.25 * 7 / 4)
    quantiser.commit()
    assert DECAY == 0.99
    # N is 2 and 2 points before the step; 3 points of sum 2 and 1 point of sum 11 come in.
    N, m = [0.99 * 2 + 0.01 * 3, 0.99 * 2 + 0.01], [0.99 * 0 + 0.01 * 2, 0.99 * 20 + 0.01 * 11]
    torch.testing.assert_close(quantiser.frequency, torch.tensor(N) / 4)
    torch.testing.assert_close(quantiser.codebook, torch.tensor([[m[0] / N[0]], [m[1] / N[1]]]))


def test_an_unused_code_stays_where_it_is():
    quantiser = EMACodebook(3, 1).train()
    quantiser.codebook.copy_(torch.tensor([[0.0], [10.0], [500.0]]))
    quantiser(line([1, -1, 2, 11]), noise(1))
    quantiser.commit()
    assert quantiser.codebook[2] == 500
    assert quantiser.frequency[2] == pytest.approx(0.99 / 3)


def test_dead_codes_start_again_at_encoder_outputs():
    quantiser = EMACodebook(16, 4).train()
    quantiser.codebook[4:] = 1e3
    z = maps(n=6)
    quantiser.frequency.copy_(torch.tensor([0.25] * 4 + [0.04 / 16] * 12))
    quantiser.frequency.div_(quantiser.frequency.sum())
    usage = quantiser(z, noise()).metrics["usage"]
    assert usage == pytest.approx(4 / 16)
    quantiser.commit()
    outputs = z.permute(0, 2, 3, 1).reshape(6, 9, 4)
    for row in range(4, 10):  # six images, one candidate of each
        matches = (outputs == quantiser.codebook[row]).all(2)
        assert matches.any(), row
    assert (quantiser.codebook[10:] == 1e3).all()
    assert quantiser.frequency.sum() == pytest.approx(1)
    assert (quantiser.keys == NOBODY).all()
    images = {int((outputs == quantiser.codebook[row]).all(2).nonzero()[0, 0]) for row in range(4, 10)}
    assert images == set(range(6)), "candidates are of different images"
    quantiser(z, noise(seed=1))
    quantiser.commit()
    assert quantiser(z, noise(seed=2)).metrics["usage"] == 1
    assert quantiser.codebook.abs().max() < 10


def test_no_more_restarts_than_candidates_are_kept():
    quantiser = EMACodebook(200, 4).train()
    quantiser.codebook.fill_(1e3)
    quantiser.frequency.zero_()
    quantiser(maps(n=90), noise(90))
    quantiser.commit()
    assert (quantiser.codebook.abs().amax(1) < 10).sum() == RESTARTS + 1  # plus the code that was nearest to all points


def test_k_means_lowers_the_distance_and_repeats():
    centres = 5 * torch.randn(16, 4)
    points = centres[torch.arange(400) % 16] + 0.1 * torch.randn(400, 4)

    def distance(quantiser):
        return (points - quantiser.lookup(quantiser.assign(points))).square().mean()

    quantiser = EMACodebook(16, 4)
    before = distance(quantiser)
    quantiser.start(points)
    assert distance(quantiser) < 0.2 * before
    counts = torch.bincount(quantiser.assign(points), minlength=16)
    torch.testing.assert_close(quantiser.frequency, counts / 400)
    assert torch.equal(k_means(points, 16), quantiser.codebook)
    assert k_means(points, 400).shape == (400, 4)
    few = k_means(points[:5], 8)
    assert torch.equal(few, torch.cat([points[:5], points[:3]]))
    assert k_means(torch.ones(50, 2), 4).unique(dim=0).shape == (1, 2)


def test_codes_of_the_cosine_book_do_not_know_the_scale():
    quantiser = CosineCodebook(32, 4).train()
    z = maps()
    found, larger = quantiser(z, noise()), quantiser(37 * z, noise())
    assert torch.equal(found.codes, larger.codes)
    torch.testing.assert_close(found.loss, larger.loss)
    torch.testing.assert_close(found.vectors.norm(dim=1), torch.ones(6, 3, 3))
    quantiser.codebook.data *= torch.rand(32, 1) + 0.1
    assert torch.equal(quantiser.encode(z), found.codes)


def test_both_sides_of_the_cosine_loss():
    quantiser = CosineCodebook(32, 4, commitment=0.25).train()
    z = maps().requires_grad_()
    found = quantiser(z, noise())
    unit = F.normalize(z, dim=1)
    distance = (unit - quantiser.decode(found.codes)).square().mean()
    torch.testing.assert_close(found.loss, 1.25 * distance)
    book, points = torch.autograd.grad(found.loss, [quantiser.codebook, z])
    (expected,) = torch.autograd.grad(0.25 * distance, z)
    torch.testing.assert_close(points, expected)
    used = torch.zeros(32, dtype=torch.bool)
    used[found.codes.flatten()] = True
    assert ((book != 0).any(1) == used).all()


def test_every_residual_level_lowers_the_error():
    quantiser = ResidualQuantiser([EMACodebook(16, 4) for _ in range(4)])
    points = torch.randn(2000, 4)
    quantiser.start(points)
    codes = quantiser.assign(points)
    sums = quantiser.partial_sums(codes)
    errors = (points - sums).square().mean((1, 2))
    assert (errors[1:] < 0.75 * errors[:-1]).all()
    first = quantiser.codebooks[0].lookup(codes[:, 0])
    second = quantiser.codebooks[1]
    torch.testing.assert_close(sums[1], first + second.lookup(nearest(points - first, second.codebook)))
    _, loss, distance = quantiser.through(points, codes)
    torch.testing.assert_close(loss, 0.25 * errors.sum())
    torch.testing.assert_close(distance, errors[-1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EMACodebook(0, 4), "a codebook needs at least 1 code, got codebook_size 0"),
        (lambda: CosineCodebook(8, 0), "vectors of at least 1 value, got code_dim 0"),
        (lambda: ResidualQuantiser([]), "at least 1 level"),
    ],
)
def test_empty_codebooks_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---- how often codes occur ----


def test_perplexity_and_usage_in_closed_form():
    assert perplexity(torch.full((12,), 1 / 12)) == pytest.approx(12)
    assert perplexity(torch.tensor([0.0, 1.0, 0.0])) == pytest.approx(1)
    assert perplexity(torch.tensor([0.5, 0.25, 0.0, 0.25])) == pytest.approx(2**1.5)
    quantiser = FSQ((2, 2))
    quantiser.frequency.copy_(torch.tensor([0.5, 0.25, 0.25, 0.0124]))  # rare is below 5% of 1/4
    metrics = quantiser(maps(dim=2), noise()).metrics
    assert metrics["usage"] == 0.75


def test_running_frequencies():
    quantiser = FSQ((2,)).train()
    quantiser(line([9, 9, 9, -9]), noise(1))
    quantiser.commit()
    torch.testing.assert_close(quantiser.frequency, torch.tensor([0.99 * 0.5 + 0.0025, 0.99 * 0.5 + 0.0075]))


def test_frequencies_by_position_and_their_draws():
    table = CodeFrequencies(2, 4)
    assert not table.fitted
    codes = torch.tensor([[0, 3], [0, 3], [1, 3], [2, 3]])
    table.fit(codes.split(3))
    assert table.fitted
    assert table.frequencies.tolist() == [[0.5, 0.25, 0.25, 0], [0, 0, 0, 1]]
    choice = torch.tensor([[0.0, 0.0], [0.499, 0.5], [0.5, 0.9], [0.76, 1 - 2**-24]])
    assert table.sample(choice, 1.0).tolist() == [[0, 3], [0, 3], [1, 3], [2, 3]]
    # Squared frequencies: 4 : 1 : 1.
    assert table.sample(torch.tensor([[0.66, 0.0], [0.67, 0.0]]), 0.5).tolist() == [[0, 3], [1, 3]]
    assert (table.sample(torch.rand(50, 2), 1e-3) == torch.tensor([0, 3])).all()


def test_large_tables_have_one_row(monkeypatch):
    monkeypatch.setattr("genmodels.nn.quantise.frequencies.MAX_VALUES", 7)
    table = CodeFrequencies(2, 4)
    table.fit([torch.tensor([[0, 3], [0, 3]])])
    assert table.frequencies.tolist() == [[0.5, 0, 0, 0.5]]
    assert table.sample(torch.tensor([[0.1, 0.9]]), 1.0).tolist() == [[0, 3]]
