"""What a solver is asked (a problem) and what it answers (a solution): tensors only, no graph."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from torchqx.errors import ConfigError, NonFiniteError, ShapeError
from torchqx.quantizers import AffineQuantizer
from torchqx.transforms import ShiftScale


@dataclass
class Sample:
    """Inputs on which a solver measures.

    Attributes:
        x: [..., K] inputs, float32.
        region: maps the members' outputs, a list of [..., N_i], to the tensor that the loss compares (attention's
            output; act(gate) · up). None: the outputs themselves, concatenated.
        mask: bool, the compared tensor's shape without its last dimension (``x.shape[:-1]`` where ``region`` is
            None). Positions where it is False do not count.
        row_mask: bool, ``x.shape[:-1]``: the rows that count in the error per token. None: ``mask`` if it has that
            shape, else all rows.
    """

    x: Tensor
    region: Callable[[list[Tensor]], Tensor] | None = None
    mask: Tensor | None = None
    row_mask: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """The rows that count, float32 [R, K]."""
        mask = self.row_mask
        if mask is None and self.mask is not None and self.mask.shape == self.x.shape[:-1]:
            mask = self.mask
        rows = self.x.float().reshape(-1, self.x.shape[-1])
        return rows if mask is None else rows[mask.reshape(-1)]


@dataclass
class LinearProblem:
    """Weighted matmuls that read one activation: Y_i = X W_iᵀ + b_i.

    Attributes:
        site: named by the errors.
        channel_low, channel_high: float32 [K]: the activation's exact range per channel over the calibration set.
        weights: one [N_i, K] per member; or [E, N, K] for stacked experts, which are read as one weight [E·N, K]:
            every expert is measured on every row, because which rows it would get changes from batch to batch.
        biases: [N_i] or None, one per member.
        samples: rows to measure on. Their number is the caller's to bound.
        activation: unsigned; per tensor (static or dynamic), or dynamic per token or group.
        weight: signed; per channel, tensor, or group.

    Raises:
        ShapeError: tensors that do not fit each other.
        NonFiniteError: NaN or Inf in a weight, a bias or the channels' ranges.
        ConfigError: a static activation quantizer with other than one scale.
    """

    site: str
    channel_low: Tensor
    channel_high: Tensor
    weights: list[Tensor]
    biases: list[Tensor | None]
    samples: list[Sample]
    activation: AffineQuantizer
    weight: AffineQuantizer

    def __post_init__(self) -> None:
        self.channel_low, self.channel_high = self.channel_low.float(), self.channel_high.float()
        self.weights = [w.detach().float().flatten(0, -2) for w in self.weights]
        self.biases = [None if b is None else b.detach().float().flatten() for b in self.biases]
        if not self.activation.dynamic and self.activation.granularity != "tensor":
            raise ConfigError(f"a static activation quantizer per {self.activation.granularity}", where=self.site,
                              remedy="make it dynamic, or per tensor.")
        self._check_shapes()
        for what, tensors in (("weight", self.weights), ("bias", self.biases),
                              ("range", [self.channel_low, self.channel_high])):
            if not all(bool(t.isfinite().all()) for t in tensors if t is not None):
                raise NonFiniteError(f"NaN or Inf in a {what}", where=self.site,
                                     remedy="check the checkpoint and the calibration data.")

    @property
    def static(self) -> bool:
        """Whether the activation's range is fixed by the solution."""
        return not self.activation.dynamic

    def _check_shapes(self) -> None:
        k = self.channel_low.shape[-1]
        fits = (
            self.channel_low.shape == self.channel_high.shape == (k,)
            and len(self.weights) == len(self.biases) > 0
            and all(w.dim() == 2 and w.shape[1] == k for w in self.weights)
            and all(b is None or len(b) == len(w) for w, b in zip(self.weights, self.biases, strict=True))
            and all(s.x.dim() and s.x.shape[-1] == k for s in self.samples)
            and all(s.row_mask is None or s.row_mask.shape == s.x.shape[:-1] for s in self.samples)
            and all(s.region or s.mask is None or s.mask.shape == s.x.shape[:-1] for s in self.samples)
        )
        if not fits:
            raise ShapeError(
                f"ranges {tuple(self.channel_low.shape)} and {tuple(self.channel_high.shape)}, "
                f"weights {[tuple(w.shape) for w in self.weights]}, "
                f"biases {[None if b is None else tuple(b.shape) for b in self.biases]}, "
                f"inputs {[tuple(s.x.shape) for s in self.samples]} do not fit each other",
                where=self.site, remedy="give [K] ranges, [N, K] weights, [N] biases and [..., K] inputs.")


@dataclass
class LinearSolution:
    """Parameters of one site.

    Attributes:
        shift, scale: [K] each, z and s of X~ = (X - z) / s and W~ = W · s; None where there is none.
        act_low, act_high: 0-dimensional: the range of X~ for a static quantizer; None for a dynamic one.
        loss: what the solver minimised, ‖Y_q - Y‖² / ‖Y‖² over what the samples compare.
        error: relative error of the linear outputs per token (:func:`~torchqx.observers.solvers.measure`).
        threshold: t of Outlier Suppression+, where that is how ``scale`` was found.
    """

    shift: Tensor | None
    scale: Tensor | None
    act_low: Tensor | None
    act_high: Tensor | None
    loss: float
    error: float
    threshold: float | None = None

    @property
    def transform(self) -> ShiftScale:
        """The shift and scale as a map on activations, weights and biases."""
        return ShiftScale(self.shift, self.scale)


def transformed_range(problem: LinearProblem, transform: ShiftScale) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of X~ over the calibration set, 0-dimensional float32."""
    return transform.activation(problem.channel_low).amin(), transform.activation(problem.channel_high).amax()
