"""A calibrated site as the problem that solvers see: in the coordinates in which its shift and scale act.

    X' = (X / g) R      W' = R_oᵀ W diag(g) R      b' = b R_o      compared: region(Y' R_oᵀ)

Whatever is solved for X' and W' holds for the site, because the rotations (and the norm's weight g) change nothing
about the exact outputs. Where a site has none of them, this is the site itself.
"""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from torchqx.observers.solvers import LinearProblem, Sample
from torchqx.site_state import SiteState
from torchqx.transforms import OutputRotation


def site_problem(state: SiteState, matrices: list[Tensor]) -> LinearProblem:
    """The problem of ``state`` for the first of its recipe's activation quantizers.

    Args:
        matrices: float32 [N, K] or [E, N, K], one per operation.

    Raises:
        NoCalibrationDataError, NonFiniteError, ShapeError: as the observers and :class:`LinearProblem` find.
    """
    low, high = (state.turned or state.channels).channel_bounds()
    outputs = {i: OutputRotation(rotation) for i, rotation in state.output_rotations.items()}
    weights, biases = [], []
    for i, (matrix, bias) in enumerate(zip(matrices, state.biases, strict=True)):
        turned = state.turn.weight(matrix)
        weights.append(outputs[i].weight(turned) if i in outputs else turned)
        biases.append(bias if bias is None or i not in outputs else outputs[i].bias(bias.float()))
    samples = [_turned(s, state, outputs) for s in state.samples or [Sample(state.rows.rows)]]
    recipe = state.recipe
    return LinearProblem(state.record.key, low, high, weights, biases, samples, recipe.activation_ladder()[0],
                         recipe.weight_quantizer())


def _turned(sample: Sample, state: SiteState, outputs: dict[int, OutputRotation]) -> Sample:
    region = sample.region
    if region is not None and outputs:
        region = _turned_back(region, outputs)
    return replace(sample, x=state.turn.activation(sample.x.float()), region=region)


def _turned_back(region: Callable[[list[Tensor]], Tensor], outputs: dict[int, OutputRotation]) -> Callable:
    def run(results: list[Tensor]) -> Tensor:
        return region([outputs[i].result(y) if i in outputs else y for i, y in enumerate(results)])

    return run
