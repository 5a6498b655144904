"""Statistics and weights -> a site's parameters, within its error budget, with the rewrite proved."""

from dataclasses import dataclass, replace
from math import inf, isfinite

import torch
from torch import Tensor

from torchqx.errors import ConfigError, EquivalenceError, UnsupportedError
from torchqx.fx_passes.prove import prove_linear
from torchqx.observers import HistogramObserver, MeanMinMaxObserver, PercentileObserver
from torchqx.observers.solvers import LinearProblem, LinearSolution, Sample, measure, others_bounds
from torchqx.quantize_weight import SiteParameters
from torchqx.quantizers import AffineQuantizer
from torchqx.recipe import AffineRecipe
from torchqx.site_problem import site_problem
from torchqx.site_state import SiteState

PROOF_ROWS = 32
ABOUT_AS_GOOD = 1.1
FEW_ROWS = 8  # from here on, the error that rows leave each other is within a factor of two of that of fresh ones
RANGES = {"mean_minmax": MeanMinMaxObserver, "percentile": PercentileObserver, "mse": HistogramObserver}
FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Of the weights that can be quantized."""


@dataclass(frozen=True)
class Attempt:
    """A quantizer, the parameters found for it, and the error per token that they leave.

    Attributes:
        error: infinite where it is not known.
        doubt: what is to be said of the error.
    """

    quantizer: AffineQuantizer
    solution: LinearSolution
    error: float
    doubt: str = ""


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
        if weight.dtype not in FLOAT_DTYPES:
            raise UnsupportedError(f"a weight of {weight.dtype}", where=operation.key,
                                   remedy="quantize from float32, bfloat16 or float16.")
    matrices = [op.layout.to_matrix(w.detach()).float() for op, w in zip(state.operations, weights, strict=True)]
    _check_groups(record.key, recipe, matrices[0].shape[-1])
    attempts = _attempts(state, site_problem(state, matrices))
    chosen = _choose(attempts, recipe)
    limit = recipe.error_limit * recipe.tolerance
    refusal = "" if chosen else f"above the error limit of {limit:.3g} with every quantizer"
    parameters = None
    if chosen is not None:
        found = chosen.solution
        parameters = SiteParameters(chosen.quantizer, recipe.weight_quantizer(), found.shift, found.scale,
                                    found.act_low, found.act_high, state.rotation, state.norm)
        try:
            for i, (operation, matrix) in enumerate(zip(state.operations, matrices, strict=True)):
                prove_linear(operation.key, state.rows.rows[:PROOF_ROWS], matrix,
                             parameters.transform(matrix.shape[-1]), state.output_rotations.get(i))
        except EquivalenceError as failure:
            parameters, refusal = None, str(failure)
    record.solver, record.loss_on = type(recipe.solver()).__name__, state.loss_on
    record.errors = {describe(a.quantizer): a.error for a in attempts if isfinite(a.error)}
    record.macs = sum(m.shape[-1] * m.shape[-2] for m in matrices)
    record.bytes_before = record.bytes_after = sum(w.numel() * w.element_size() for w in weights)
    record.status, record.reason, state.parameters = "float", refusal, parameters
    low, high = state.channels.channel_bounds()
    record.outlier_ratio_before = outlier_ratio(low, high)
    if parameters is not None:
        _fill(state, parameters, attempts, chosen)
        record.bytes_after = sum(stored_bytes(m.shape, parameters.weight) for m in matrices)
    state.release()


def stored_bytes(shape: torch.Size, quantizer: AffineQuantizer) -> int:
    """Memory of a quantized [N, K] or [E, N, K]: codes, scales, and zero points where there are any."""
    scales = {"tensor": 1, "channel": shape[:-1].numel(), "group": shape.numel() // (quantizer.group_size or 1)}
    return shape.numel() + (4 if quantizer.symmetric else 8) * scales[quantizer.granularity]


def _check_groups(key: str, recipe: AffineRecipe, columns: int) -> None:
    for name, size in (("weight_group_size", recipe.weight_group_size),
                       ("activation_group_size", recipe.activation_group_size)):
        if size is not None and columns % size:
            raise ConfigError(f"rows of {columns} do not split into {name}={size}", where=key,
                              remedy="choose a divisor, or exclude the site.")


def _attempts(state: SiteState, problem: LinearProblem) -> list[Attempt]:
    """The recipe's ladder, up to the first quantizer within the error budget."""
    recipe, solver = state.recipe, state.recipe.solver()
    rows = state.turn.activation(state.rows.rows)
    attempts: list[Attempt] = []
    for quantizer in recipe.activation_ladder():
        problem = replace(problem, activation=quantizer)
        solution = solver.solve(problem)
        _set_range(solution, state, rows, quantizer)
        attempts.append(_measured(state, problem, solution, rows))
        if attempts[-1].error <= recipe.error_budget * recipe.tolerance:
            break
    return attempts


def _measured(state: SiteState, problem: LinearProblem, solution: LinearSolution, rows: Tensor) -> Attempt:
    """A static range is measured on each row as the other rows would set it."""
    quantizer, problem = problem.activation, replace(problem, samples=[Sample(rows)])
    if not problem.static:
        return Attempt(quantizer, solution, measure(problem, solution))
    count = int(state.channels.count)
    if count == 1:
        return Attempt(quantizer, solution, inf, "calibrated on 1 row, which tells nothing of others")
    transform = solution.transform
    seen = (transform.activation(t) for t in (rows, *(state.turned or state.channels).channel_extremes()))
    error = measure(problem, solution, others_bounds(*seen, transform.scale, symmetric=quantizer.symmetric))
    doubt = f"calibrated on {count} rows: the error is a rough estimate" if count < FEW_ROWS else ""
    return Attempt(quantizer, solution, error, doubt)


def _choose(attempts: list[Attempt], recipe: AffineRecipe) -> Attempt | None:
    """The first within the budget; else the first that is about as good as any, if within the limit."""
    if recipe.activation != "auto" or attempts[-1].error <= recipe.error_budget * recipe.tolerance:
        return attempts[-1]
    best = min(a.error for a in attempts)
    near = next(a for a in attempts if a.error <= ABOUT_AS_GOOD * best)
    return near if near.error <= recipe.error_limit * recipe.tolerance else None


def outlier_ratio(low: Tensor, high: Tensor) -> float | None:
    """The largest over the median of the channels' maxima; None where every channel is zero.

    Args:
        low, high: ranges per channel, [K]. Channels that are zero do not count.
    """
    peaks = torch.maximum(-low, high)
    peaks = peaks[peaks > 0]
    return float(peaks.amax() / peaks.median()) if len(peaks) else None


def _fill(state: SiteState, parameters: SiteParameters, attempts: list[Attempt], chosen: Attempt) -> None:
    record, recipe, moved = state.record, state.recipe, chosen.solution.transform
    record.status, record.loss = "quantized", float(chosen.solution.loss)
    record.error = chosen.error if isfinite(chosen.error) else None
    record.transforms = [*state.turn.names, *moved.names]
    if record.transforms:
        online = chosen.quantizer.dynamic or state.turn.parts
        record.placement = state.placement or ("online" if online else "in the quantizer")
    low, high = (state.turned or state.channels).channel_bounds()
    record.outlier_ratio_after = outlier_ratio(moved.activation(low), moved.activation(high))
    record.activation, record.weight = describe(chosen.quantizer), describe(parameters.weight)
    record.reason = "; ".join(filter(None, (_why(attempts, chosen, recipe), state.unrotated)))


def _why(attempts: list[Attempt], chosen: Attempt, recipe: AffineRecipe) -> str:
    """Why the cheapest quantizer was not taken, or what is in doubt of the one that was."""
    first = attempts[0]
    if recipe.activation != "auto" or first.error <= recipe.error_budget * recipe.tolerance:
        return chosen.doubt
    known = isfinite(first.error) or not first.doubt
    problem = f"{first.error:.3g} is over the error budget" if known else first.doubt
    reason = f"{describe(first.quantizer)}: {problem}" + (", as is every other quantizer" if chosen is first else "")
    return "; ".join(dict.fromkeys(filter(None, (reason, chosen.doubt if known else ""))))


def describe(q: AffineQuantizer) -> str:
    """A quantizer in the report's words: "u8 affine per tensor, static"; "float" where there is none."""
    if q.granularity == "none":
        return "float"
    size = "" if q.group_size is None else f" of {q.group_size}"
    kind = f"{'s' if q.signed else 'u'}{q.bits} {'symmetric' if q.symmetric else 'affine'}"
    return f"{kind} per {q.granularity}{size}" + ("" if q.signed else ", dynamic" if q.dynamic else ", static") + (
        "" if q.clip_ratio == 1 else f", clipped to {q.clip_ratio:g} of the range")


def _set_range(solution: LinearSolution, state: SiteState, rows: Tensor, quantizer: AffineQuantizer) -> None:
    """Replace the min-max range of a static quantizer by the recipe's statistic of the (rotated) rows, transformed; or
    by the range of the scan that reads the same values."""
    scan = state.range_from
    if scan is not None and not scan.in_float and not quantizer.dynamic and not solution.transform.names:
        limit = scan.solved("x").amax().to(rows.device)
        solution.act_low, solution.act_high = -limit, limit
        return
    if quantizer.dynamic or state.recipe.statistics == "minmax":
        return
    transformed = solution.transform.activation(rows)
    observer = RANGES[state.recipe.statistics](quantizer, site=state.record.key)
    for batch in transformed.split(max(1, len(transformed) // 8)):
        observer(batch)
    solution.act_low, solution.act_high = observer.bounds()
