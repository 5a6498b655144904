"""What a static range leaves of rows that did not set it."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from torchqx.observers.solvers import LinearProblem, OutlierSuppressionPlusSolver, Sample, measure, others_bounds
from torchqx.quantizers import AffineQuantizer

WEIGHT = AffineQuantizer(8, True, "channel", signed=True)


def extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    """The two smallest and the two largest values of each channel."""
    padded = torch.cat((x, x.new_full((1, x.shape[1]), torch.nan)))  # of a single row, itself alone
    low = padded.nan_to_num(torch.inf).topk(2, dim=0, largest=False).values
    return low, padded.nan_to_num(-torch.inf).topk(2, dim=0).values


def bounds(rows: list[list[float]], scale: Tensor | None = None) -> tuple[list[float], list[float]]:
    x = torch.tensor(rows)
    low, high = others_bounds(x, *extremes(x), scale, symmetric=False)
    return low.tolist(), high.tolist()


@given(st.data(), st.integers(1, 5), st.integers(1, 6), st.booleans())
def test_each_row_is_clipped_to_the_range_of_the_others(data: st.DataObject, columns: int, count: int,
                                                        symmetric: bool) -> None:
    """Exactly, where nothing is scaled; whole numbers have ties."""
    row = st.lists(st.integers(-9, 9), min_size=columns, max_size=columns)
    x = torch.tensor(data.draw(st.lists(row, min_size=count, max_size=count)), dtype=torch.float32)
    found = x.clamp(*others_bounds(x, *extremes(x), None, symmetric))
    for r in range(count):
        others = torch.cat((x[:r], x[r + 1 :], torch.zeros(1, columns)))  # every range holds zero
        end = others.abs().amax()
        low, high = (-end, end) if symmetric else torch.aminmax(others)
        assert torch.equal(found[r], x[r].clamp(low, high))


def test_channels_scaled_to_the_end_are_each_their_own() -> None:
    """To the runner-up, but no further down than without a scale."""
    scale = torch.tensor([3.0, 3.0, 1.0])
    assert bounds([[9.0, 4.0, 0.0], [2.0, 9.0, 9.0], [0.0, 0.0, 1.0]], scale)[1] == [3.0, 4.0, 9.0]


def test_a_sample_without_the_extremes_keeps_its_values() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 2.0]])
    high = torch.tensor([[9.0, 9.0], [1.0, 1.0]])
    for scale in (None, torch.tensor([1.0, 2.0])):
        assert torch.equal(x.clamp(*others_bounds(x, -high, high, scale, symmetric=False)), x)


def test_of_a_sample_with_an_extreme_all_rows_are_the_others() -> None:
    x = torch.tensor([[9.0], [1.0]])
    low, high = others_bounds(x, torch.zeros(2, 1), torch.tensor([[9.0], [8.0]]), None, symmetric=False)
    assert (float(low), float(high)) == (0.0, 8.0)


def test_of_a_single_row_nothing_is_left() -> None:
    assert bounds([[3.0, -4.0]]) == ([0.0, 0.0], [0.0, 0.0])


def heavy(rows: int, seed: int) -> Tensor:
    """Gaussian rows, each a log-normal multiple, in channels of unlike magnitude."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.randn(rows, 1, generator=generator).exp()
    return torch.randn(rows, 100, generator=generator) * size * torch.logspace(0, 1.5, 100)


@pytest.mark.parametrize("rows", [8, 63, 500])
def test_the_error_is_that_of_fresh_rows(rows: int) -> None:
    """Within a factor of two of what 4000 other rows find; the rows' own error is far below it."""
    weight = torch.randn(40, 100, generator=torch.Generator().manual_seed(1))
    left_out, own, fresh = [], [], []
    for seed in range(6):
        x = heavy(rows, seed)
        problem = LinearProblem("site", x.amin(0), x.amax(0), [weight], [None], [Sample(x)], AffineQuantizer(), WEIGHT)
        solution = OutlierSuppressionPlusSolver(shift=False, steps=5).solve(problem)
        seen = (solution.transform.activation(t) for t in (x, *extremes(x)))
        own.append(solution.error)
        left_out.append(measure(problem, solution, others_bounds(*seen, solution.scale, symmetric=False)))
        fresh.append(measure(replace(problem, samples=[Sample(heavy(4000, 100 + seed))]), solution))
    truth, claimed, naive = (float(torch.tensor(e).square().mean().sqrt()) for e in (fresh, left_out, own))
    assert truth / 2 < claimed < 2 * truth
    assert naive < claimed
