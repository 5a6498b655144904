"""What quantization does to a problem's outputs: the loss that solvers minimise, and the error that is reported."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from torchqx.errors import NoCalibrationDataError, NonFiniteError, ShapeError
from torchqx.observers.solvers.coded import CodedLinear, Range
from torchqx.observers.solvers.problem import LinearProblem, LinearSolution, Sample, transformed_range
from torchqx.transforms import ShiftScale

LARGEST_OUTPUT = 1 << 24  # elements of a float32 output held at once: 64 MiB
SEARCHED_FEATURES = 1024
Members = list[tuple[Tensor, Tensor | None]]


@contextmanager
def plain_float32(device: torch.device) -> Iterator[None]:
    """No gradients and no autocast, whatever the caller's surroundings."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


class Objective:
    """‖Y_q - Y‖² / ‖Y‖² of a problem as a function of the transform and the activation's range.

        Y_q = region(Q((X - z) / s) Q(W · s)ᵀ + b + W z)        Y = region(X Wᵀ + b)

    Without regions the loss is a sum over output features of like kind, and weights of one scale per row (or group)
    are quantized row by row: then about 1024 evenly spaced features stand for all of them. The float outputs are
    kept; so that they stay below 64 MiB, evenly spaced rows stand for all where there are more.
    """

    def __init__(self, problem: LinearProblem) -> None:
        self.problem = problem
        self.samples = [s for s in problem.samples if s.region is not None and s.x.numel()]
        self.members = self._members()
        rows = [s.rows for s in problem.samples if s.region is None]
        if sum(map(len, rows)):
            self.samples.append(Sample(self._bounded(torch.cat(rows))))
        if not self.samples:
            raise no_rows(problem)
        self.targets = [self._compared(s, [F.linear(s.x.float(), w, b) for w, b in self.members]) for s in self.samples]
        self.power = sum(_power(t) for target in self.targets for t in target)
        if not math.isfinite(self.power):
            raise NonFiniteError("NaN or Inf in the outputs of the float layer", where=problem.site,
                                 remedy="look for overflow in the model's dtype, or drop the offending batch.")

    def __call__(self, transform: ShiftScale, bounds: Range) -> float:
        """The loss; infinite for a transform that overflows. ``bounds``: the range of a static activation."""
        layers = quantized(self.problem, self.members, transform)
        noise = 0.0
        for sample, targets in zip(self.samples, self.targets, strict=True):
            x = transform.activation(sample.x.float())
            outputs = (layer(x, bounds, bias) for layer, bias in layers)
            if sample.region is not None:
                outputs = self._compared(sample, list(outputs))
            noise += sum(_power(output.sub_(target)) for output, target in zip(outputs, targets, strict=True))
        return noise / max(self.power, 1e-30) if math.isfinite(noise) else math.inf

    def _members(self) -> Members:
        members = list(zip(self.problem.weights, self.problem.biases, strict=True))
        if self.samples or self.problem.weight.granularity == "tensor":
            return members
        step = math.ceil(sum(map(len, self.problem.weights)) / SEARCHED_FEATURES)
        biases = [w.new_zeros(len(w)) if b is None else b for w, b in members]
        return [(torch.cat([w[::step] for w, _ in members]), torch.cat([b[::step] for b in biases]))]

    def _compared(self, sample: Sample, outputs: list[Tensor]) -> list[Tensor]:
        if sample.region is None:
            return outputs
        value = sample.region(outputs)
        if sample.mask is None:
            return [value.clone()]
        if sample.mask.shape != value.shape[:-1]:
            raise ShapeError(f"mask {tuple(sample.mask.shape)} for a compared tensor {tuple(value.shape)}",
                             where=self.problem.site, remedy="give the mask the region's shape but the last dimension.")
        return [value[sample.mask]]

    def _bounded(self, rows: Tensor) -> Tensor:
        limit = max(1, LARGEST_OUTPUT // sum(len(w) for w, _ in self.members))
        return rows[:: math.ceil(len(rows) / limit)]


def quantized(
    problem: LinearProblem, members: Members, transform: ShiftScale
) -> list[tuple[CodedLinear, Tensor | None]]:
    """Each member with W · s quantized, and its bias b + W z."""
    return [
        (CodedLinear(problem.activation, problem.weight, transform.weight(w)), transform.bias(w, b))
        for w, b in members
    ]


def measure(problem: LinearProblem, solution: LinearSolution, clip: tuple[Tensor, Tensor] | None = None) -> float:
    """Relative error of the linear outputs, each token counting the same:

        sqrt( mean over rows of ‖y_q - y‖² / ‖y‖² )

    A norm over everything would let a few massive tokens hide the error of all others. Rows of (almost) no norm are
    left out. Works for any solution of a problem with these weights, so
    ``measure(replace(problem, activation=other), solution)`` compares quantizers; a static one takes its range from
    the solution, or from the channels' ranges if the solution has none. Infinite where the outputs overflow.

    Args:
        clip: ends [K] to which the transformed rows are clipped before they are quantized.

    Raises:
        NoCalibrationDataError: the samples hold no row that counts.
    """
    with plain_float32(problem.channel_low.device):
        transform = solution.transform
        bounds: Range = None
        if problem.static:
            bounds = (solution.act_low, solution.act_high)
            if solution.act_low is None or solution.act_high is None:
                bounds = transformed_range(problem, transform)
        step = max(1, LARGEST_OUTPUT // max(map(len, problem.weights)))
        parts = [part for s in problem.samples for part in _parts(problem, s.rows, transform, bounds, step)]
        if clip is not None:
            parts = [(x, transformed.clamp(*clip), span) for x, transformed, span in parts]
        if not parts:
            raise no_rows(problem)
        noise = [x.new_zeros(len(x)) for x, _, _ in parts]
        power = [x.new_zeros(len(x)) for x, _, _ in parts]
        for weight, bias in zip(problem.weights, problem.biases, strict=True):
            ((layer, moved),) = quantized(problem, [(weight, bias)], transform)
            for i, (x, transformed, span) in enumerate(parts):
                exact = F.linear(x, weight, bias)
                power[i] += exact.square().sum(-1)
                noise[i] += layer(transformed, span, moved).sub_(exact).square_().sum(-1)
    return _per_token(torch.cat(noise).double(), torch.cat(power).double())


def no_rows(problem: LinearProblem) -> NoCalibrationDataError:
    """What is raised when the samples hold no row that counts."""
    return NoCalibrationDataError("no rows to measure on", where=problem.site,
                                  remedy="run calibration batches that reach this site, not all padding.")


def _parts(
    problem: LinearProblem, rows: Tensor, transform: ShiftScale, bounds: Range, step: int
) -> Iterator[tuple[Tensor, Tensor, Range]]:
    """Rows, the same transformed, and the range to code them with, at most ``step`` at a time."""
    if not len(rows):
        return
    transformed = transform.activation(rows)
    if bounds is None and problem.activation.granularity == "tensor":
        bounds = problem.activation.range_of(transformed)  # one range for the whole sample, not for each part
    for i in range(0, len(rows), step):
        yield rows[i : i + step], transformed[i : i + step], bounds


def _per_token(noise: Tensor, power: Tensor) -> float:
    counted = power > 1e-12 * power.mean()
    if not bool(counted.any()):
        return 0.0
    error = float((noise[counted] / power[counted]).mean().sqrt())
    return error if math.isfinite(error) else math.inf


def _power(x: Tensor) -> float:
    # Rows in float32, the total in float64: one pass, and no loss over millions of elements.
    return float(torch.linalg.vector_norm(x.flatten(0, -2), dim=-1).double().square().sum())
