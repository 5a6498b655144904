"""One thing that is verified: its error against a reference in higher precision, and the bound on that error."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

HEADER = ("verified", "error", "bound", "")
HALF = 0.51  # of a code: rounding, and what float32 adds to the value before it


@dataclass(frozen=True)
class Check:
    """``error()`` computes and compares; NaN, or an exception, fails."""

    name: str
    bound: float
    error: Callable[[], float]


@dataclass(frozen=True)
class Verdict:
    """What became of a check; ``problem`` is the exception's text."""

    name: str
    bound: float
    error: float = float("nan")
    problem: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= self.bound

    def row(self) -> tuple[str, ...]:
        """Cells of :data:`HEADER`."""
        return (self.name, f"{self.error:.1e}", f"{self.bound:.1e}",
                "ok" if self.passed else f"FAILED {self.problem}".rstrip())


@torch.no_grad()
def judge(check: Check) -> Verdict:
    """Run ``check`` with nothing compiled before it."""
    torch._dynamo.reset()
    try:
        return Verdict(check.name, check.bound, check.error())
    except Exception as error:  # whatever a kernel raises is what the table is for
        return Verdict(check.name, check.bound, problem=f"{type(error).__name__}: {error}".splitlines()[0])


def relative(result: Tensor, expected: Tensor) -> float:
    """‖result - expected‖ / ‖expected‖, Frobenius norms in float64."""
    result, expected = result.detach().cpu().double(), expected.detach().cpu().double()
    if result.shape != expected.shape:
        raise ValueError(f"shape {tuple(result.shape)} where {tuple(expected.shape)} is expected")
    return float((result - expected).norm() / expected.norm())


def code_distance(codes: Tensor, exact: Tensor) -> float:
    """The largest distance of integer ``codes`` from the values before rounding."""
    if codes.dtype not in (torch.int8, torch.uint8) or codes.shape != exact.shape:
        raise ValueError(f"{codes.dtype} codes of shape {tuple(codes.shape)} for {tuple(exact.shape)}")
    return float((codes.cpu().double() - exact.cpu().double()).abs().max())
