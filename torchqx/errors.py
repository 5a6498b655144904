"""Every error torchqx raises for something the user can put right, in one place.

Each message names the site (or field, or file) it is about and ends with a remedy.
"""


class TorchqxError(Exception):
    """Base class. ``where`` names the site, field, or file; ``remedy`` says what to do about it."""

    def __init__(self, problem: str, *, where: str | None = None, remedy: str | None = None) -> None:
        self.problem, self.where, self.remedy = problem, where, remedy
        at = f"{where}: " if where else ""
        fix = f" Remedy: {remedy}" if remedy else ""
        super().__init__(f"{at}{problem}{fix}")


class ConfigError(TorchqxError, ValueError):
    """A recipe or an option has an unknown field or a value outside its range."""


class CalibrationError(TorchqxError, ValueError):
    """Calibration cannot give parameters."""


class NoCalibrationDataError(CalibrationError):
    """A site, or the whole model, was asked for parameters before it saw any data."""


class NonFiniteError(CalibrationError):
    """NaN or Inf reached a site's statistics or a weight."""


class ShapeError(TorchqxError, ValueError):
    """A tensor does not have the shape that a site, an observer, or a kernel was made for."""


class NoSitesError(TorchqxError, ValueError):
    """The traced model has nothing that the recipe acts on."""


class AlreadyQuantizedError(TorchqxError, ValueError):
    """The model, or one of its weights, is quantized already."""


class NotPreparedError(TorchqxError, ValueError):
    """``convert`` was called on a model that ``prepare`` has not seen."""


class PlanMismatchError(TorchqxError, ValueError):
    """A plan was made for another model."""


class CheckpointError(TorchqxError, ValueError):
    """A checkpoint is truncated, was tampered with, or has a format that is not known."""


class UnsupportedError(TorchqxError, ValueError):
    """A dtype, device, torch version, or graph pattern that torchqx does not handle."""


class TrainingError(TorchqxError, RuntimeError):
    """A gradient was asked through a quantized model."""


class EquivalenceError(TorchqxError, AssertionError):
    """A function-preserving rewrite changed the function by more than its tolerance."""


class TorchqxWarning(UserWarning):
    """Something was not applied, and why; given once per compiled model."""
