"""What solvers see of a rotated site computes what the site computes."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from torchqx import HadamardConfig
from torchqx.fx_passes.sites import Form
from torchqx.layouts import WeightLayout
from torchqx.observers.solvers import Sample
from torchqx.rotations import Hadamard
from torchqx.site_problem import site_problem
from torchqx.site_state import Operation, SiteState

K, N = 24, 8
TURNS = [{}, {"rotation": Hadamard(24, 1)}, {"rotation": Hadamard(4), "norm": torch.arange(1.0, 25.0)},
         {"norm": torch.arange(1.0, 25.0)}]


def state(turns: dict, x: Tensor, outputs: dict[int, Hadamard]) -> tuple[SiteState, list[torch.nn.Parameter]]:
    weights = [torch.nn.Parameter(torch.randn(N, K)) for _ in range(2)]
    made = SiteState("site:linear:0", [Operation(f"{i}", WeightLayout.OUT_IN, f"{i}") for i in range(2)], Form.LINEAR,
                     HadamardConfig(activation="static"))
    for i, weight in enumerate(weights):
        made.adopt(weight, i)
    made.rotate(turns.get("rotation"), turns.get("norm"), K)
    made.output_rotations = outputs
    made.biases = [torch.randn(N), None]
    made.observe(x, None)
    return made, weights


@pytest.mark.parametrize("outputs", [{}, {1: Hadamard(4, 9)}, {0: Hadamard(8), 1: Hadamard(4)}])
@pytest.mark.parametrize("turns", TURNS, ids=lambda t: " and ".join(t) or "neither")
def test_outputs_and_ranges(turns: dict, outputs: dict) -> None:
    x = torch.randn(40, K)
    made, weights = state(turns, x, outputs)
    compared = []

    def region(results: list[Tensor]) -> Tensor:
        compared.append(results)
        return results[0]

    made.samples = [Sample(x, region)]
    problem = site_problem(made, [w.detach() for w in weights])
    (sample,) = problem.samples
    assert_close(sample.x.amin(0), problem.channel_low)
    assert_close(sample.x.amax(0), problem.channel_high)
    sample.region([torch.nn.functional.linear(sample.x, w, b)
                   for w, b in zip(problem.weights, problem.biases, strict=True)])
    for i, result in enumerate(compared[0]):
        assert_close(result, torch.nn.functional.linear(x, weights[i], made.biases[i]), rtol=1e-4, atol=1e-4)


def test_without_a_region_the_kept_rows_are_the_sample() -> None:
    x = torch.randn(40, K).bfloat16()
    made, weights = state(TURNS[2], x, {})
    (sample,) = site_problem(made, [w.detach() for w in weights]).samples
    assert sample.region is None
    assert_close(sample.x, made.turn.activation(made.rows.rows))
