"""Statistics and weights -> a site's parameters, within its error budget, with the rewrite proved."""

import torch
from torch import Tensor

from torchqx.errors import EquivalenceError, UnsupportedError
from torchqx.fx_passes.prove import prove_linear
from torchqx.observers import HistogramObserver, MeanMinMaxObserver, PercentileObserver
from torchqx.observers.solvers import LinearProblem, LinearSolution, Sample, measure
from torchqx.quantize_weight import SiteParameters
from torchqx.quantizers import AffineQuantizer
from torchqx.site_state import SiteState

PROOF_ROWS = 32
RANGES = {"mean_minmax": MeanMinMaxObserver, "percentile": PercentileObserver, "mse": HistogramObserver}
FLOAT_TO_INT8_TIME = {torch.float32: 9.0, torch.bfloat16: 2.0, torch.float16: 2.0}
"""Matmul time in a float dtype over that in int8, where both run in vector units of one width."""


@torch.no_grad()
def solve_site(state: SiteState, weights: list[Tensor]) -> None:
    """Solve ``state`` in place: its parameters, or its decision to stay float, and its record.

    Args:
        weights: the parameters of the site's operations, in their own layouts.

    Raises:
        NoCalibrationDataError, NonFiniteError, ShapeError, UnsupportedError: as the observers and solvers find; the
        state stays as it was.
    """
    recipe, record = state.recipe, state.record
    for operation, weight in zip(state.operations, weights, strict=True):
        if weight.dtype not in FLOAT_TO_INT8_TIME:
            raise UnsupportedError(f"a weight of {weight.dtype}", where=operation.key,
                                   remedy="quantize from float32, bfloat16 or float16.")
    matrices = [op.layout.to_matrix(w.detach()).float() for op, w in zip(state.operations, weights, strict=True)]
    low, high = state.channels.channel_bounds()
    rows = state.rows.rows
    problem = LinearProblem(record.key, low, high, matrices, [None if b is None else b.float() for b in state.biases],
                            state.samples or [Sample(rows)], recipe.activation_ladder()[0], recipe.weight_quantizer())
    errors: dict[str, float] = {}
    chosen: tuple[AffineQuantizer, LinearSolution, float] | None = None
    solver = recipe.solver()
    for quantizer in recipe.activation_ladder():
        problem.activation = quantizer
        solution = solver.solve(problem)
        _set_range(solution, state, rows, quantizer)
        problem_rows = LinearProblem(record.key, low, high, matrices, problem.biases, [Sample(rows)], quantizer,
                                     problem.weight)
        error = measure(problem_rows, solution)
        errors[describe(quantizer)] = error
        if error <= recipe.budget() or recipe.activation != "auto":
            chosen = quantizer, solution, error
            break
    record.solver, record.loss_on, record.errors = type(solver).__name__, state.loss_on, errors
    record.macs = sum(m.shape[-1] * m.shape[-2] for m in matrices)
    record.bytes_before = sum(w.numel() * w.element_size() for w in weights)
    if chosen is None:
        record.status, record.bytes_after = "float", record.bytes_before
        record.reason = f"over the error budget of {recipe.budget():.3g} with every quantizer"
        state.release()
        return
    quantizer, solution, error = chosen
    parameters = SiteParameters(quantizer, recipe.weight_quantizer(), solution.shift, solution.scale,
                                solution.act_low, solution.act_high)
    try:
        for operation, matrix in zip(state.operations, matrices, strict=True):
            prove_linear(operation.key, rows[:PROOF_ROWS], matrix, parameters.transforms)
    except EquivalenceError as failure:
        record.status, record.reason, record.bytes_after = "float", str(failure), record.bytes_before
        state.release()
        return
    state.parameters = parameters
    record.status, record.error, record.loss = "quantized", error, float(solution.loss)
    record.transforms = [type(t).__name__.lower() for t in parameters.transforms]
    record.placement = "online" if parameters.transforms else ""
    record.activation, record.weight = describe(quantizer), describe(parameters.weight)
    record.expected_gain = FLOAT_TO_INT8_TIME[weights[0].dtype]
    record.bytes_after = sum(m.numel() + 4 * m.shape[:-1].numel() for m in matrices)
    if len(errors) > 1:
        record.reason = f"{next(iter(errors))} is over the error budget of {recipe.budget():.3g}"
    state.release()


def describe(q: AffineQuantizer) -> str:
    """A quantizer in the report's words: "u8 affine per tensor, static"."""
    size = "" if q.group_size is None else f" of {q.group_size}"
    kind = f"{'s' if q.signed else 'u'}{q.bits} {'symmetric' if q.symmetric else 'affine'}"
    return f"{kind} per {q.granularity}{size}" + ("" if q.signed else ", dynamic" if q.dynamic else ", static")


def _set_range(solution: LinearSolution, state: SiteState, rows: Tensor, quantizer: AffineQuantizer) -> None:
    """Replace the min-max range of a static quantizer by the recipe's statistic of the transformed rows."""
    if quantizer.dynamic or state.recipe.statistics == "minmax":
        return
    transformed = rows
    for transform in SiteParameters(quantizer, quantizer, solution.shift, solution.scale).transforms:
        transformed = transform(transformed)
    observer = RANGES[state.recipe.statistics](quantizer, site=state.record.key)
    for batch in transformed.split(max(1, len(transformed) // 8)):
        observer(batch)
    solution.act_low, solution.act_high = observer.bounds()
