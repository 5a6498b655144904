"""Problems refuse what does not fit; transforms preserve the function."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchqx.errors import ConfigError, NonFiniteError, ShapeError
from torchqx.observers.solvers import LinearSolution, Sample
from torchqx.quantizers import AffineQuantizer
from torchqx.transforms import ShiftScale


@settings(max_examples=50, deadline=None)
@given(
    k=st.integers(1, 64), n=st.integers(1, 33), rows=st.integers(1, 20), seed=st.integers(0, 1000),
    shifted=st.booleans(), scaled=st.booleans(), biased=st.booleans(),
)
def test_a_transform_preserves_the_function(k, n, rows, seed, shifted, scaled, biased):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, weight, bias = draw(rows, k) * 10, draw(n, k), draw(n) if biased else None
    transform = ShiftScale(draw(k) * 30 if shifted else None, draw(k).exp() if scaled else None)
    before = torch.nn.functional.linear(x, weight, bias)
    after = torch.nn.functional.linear(
        transform.activation(x), transform.weight(weight), transform.bias(weight, bias))
    assert (after - before).norm() <= 1e-9 * before.norm()


def test_a_bias_appears_only_with_a_shift():
    weight = torch.randn(4, 3)
    assert ShiftScale(scale=torch.ones(3)).bias(weight, None) is None
    assert ShiftScale(shift=torch.ones(3)).bias(weight, None).shape == (4,)
    stacked = torch.randn(2, 4, 3)
    assert ShiftScale(shift=torch.ones(3)).bias(stacked, torch.randn(2, 4)).shape == (2, 4)


def test_a_solution_knows_its_transform():
    shift, scale = torch.ones(3), torch.full((3,), 2.0)
    assert LinearSolution(shift, scale, None, None, 0.0, 0.0).transform == ShiftScale(shift, scale)


@pytest.mark.parametrize(
    "changes",
    [
        {"channel_low": torch.zeros(6)},
        {"channel_low": torch.zeros(1, 7)},
        {"weights": [torch.ones(5, 6)]},
        {"weights": []},
        {"biases": [torch.ones(4)]},
        {"biases": []},
        {"samples": [Sample(torch.ones(3, 6))]},
        {"samples": [Sample(torch.ones(3, 7), mask=torch.ones(4, dtype=torch.bool))]},
        {"samples": [Sample(torch.ones(3, 7), row_mask=torch.ones(4, dtype=torch.bool))]},
    ],
)
def test_shapes_that_do_not_fit(problem_of, changes):
    problem = problem_of(torch.randn(3, 7), (5,))
    with pytest.raises(ShapeError, match=r"layer\.0\.fc1.*Remedy"):
        replace(problem, **changes)


@pytest.mark.parametrize("field", ["weights", "biases", "channel_high"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_input_names_the_site(problem_of, field, bad):
    problem = problem_of(torch.randn(3, 7), (5,))
    values = {"weights": [torch.ones(5, 7)], "biases": [torch.ones(5)], "channel_high": torch.ones(7)}
    value = values[field]
    (value[0] if isinstance(value, list) else value)[0] = bad
    with pytest.raises(NonFiniteError, match=r"layer\.0\.fc1"):
        replace(problem, **{field: value})


def test_a_static_activation_has_one_scale(problem_of):
    with pytest.raises(ConfigError, match="token"):
        problem_of(torch.randn(3, 7), activation=AffineQuantizer(granularity="token"))


def test_stacked_experts_are_one_weight_and_all_is_float32(problem_of):
    experts = torch.randn(3, 5, 7).bfloat16()
    problem = problem_of(torch.randn(4, 7), weights=[experts], biases=[torch.ones(3, 5)])
    assert torch.equal(problem.weights[0], experts.float().reshape(15, 7))
    assert problem.biases[0].shape == (15,)
