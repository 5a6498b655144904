"""Whether an integer matmul pays against the float one, reckoned from the rates that a machine was measured at.

| kernel | integer time | beside it |
|---|---|---|
| packed | quantize + one call of the C++ kernel | float |
| plain | quantize + one integer matmul of torch + a pass over its sums | weight only, float |
| general | quantize + an integer matmul and its passes per group | weight only, float |

Weight only makes the weight float in every call and keeps nothing; float keeps a float weight beside the codes, so it
is for weights whose float copy is small, or that the model holds in float anyway.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torchqx.inductor_kernels.int8_linear.aten import MOST_INTEGER_GROUPS

Lowering = Literal["int8", "weight only", "float"]
Kernel = Literal["packed", "plain", "general"]
MARGIN = 1.1  # how much faster another way must be than the integers that were asked for: less is noise
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Rates:
    """What kernels take on one machine, with one number of threads.

    Attributes:
        rows: numbers of rows that were timed, ascending, from 1.
        matmul: kernel -> seconds per element of the weight, at each of ``rows``. The kernels: "float32", "bfloat16",
            each with " weight only" behind it and with " weight only grouped", "integer" (torch's), "group" (one of the
            general formula), and "packed" where it runs.
        call: kernel -> seconds that its smallest call takes.
        byte: seconds per byte that a pass over a tensor reads or writes.
    """

    rows: tuple[int, ...]
    matmul: Mapping[str, tuple[float, ...]]
    call: Mapping[str, float]
    byte: float

    def seconds(self, kernel: str, rows: int, elements: int) -> float:
        """Of ``rows`` rows times a weight of ``elements``: linear between what was timed, then in proportion."""
        times = self.matmul[kernel]
        if rows >= self.rows[-1]:
            each = times[-1] * rows / self.rows[-1]
        else:
            above = next(i for i, timed in enumerate(self.rows) if timed > rows)
            low, high = self.rows[above - 1], self.rows[above]
            each = times[above - 1] + (times[above] - times[above - 1]) * (rows - low) / (high - low)
        return self.call[kernel] + each * elements


@dataclass(frozen=True)
class Matmuls:
    """Matmuls that read one activation of ``rows`` rows of ``k`` elements; side by side they are one.

    Attributes:
        columns: N of each.
        dtype: name of the float model's dtype.
        groups: of a row, where the kernel is "general".
        dynamic: whether the rows are quantized at run time; else the quantizer is part of what computes them.
        grouped: whether the weight has scales by group, or zero points, so that weight only makes each element float.
    """

    rows: int
    k: int
    columns: tuple[int, ...]
    dtype: str
    kernel: Kernel
    groups: int
    dynamic: bool
    grouped: bool


@dataclass(frozen=True)
class Choice:
    """How matmuls run. ``gain``: the float model's time over that of the integers."""

    lowering: Lowering
    gain: float

    def __str__(self) -> str:
        if self.lowering == "int8":
            return f"int8, expected gain {self.gain:.1f}x"
        return f"{self.lowering}: int8 does not pay ({self.gain:.1f}x)"


def choose(rates: Rates, m: Matmuls, keeps_float: bool) -> Choice:
    """The fastest way, or the integers where it is not clearly faster.

    Args:
        keeps_float: whether float weights may be kept.
    """
    floating = sum(rates.seconds(m.dtype, m.rows, m.k * n) for n in m.columns)
    integer = _integer_seconds(rates, m)
    others: dict[Lowering, float] = {}
    if m.kernel != "packed":
        formula = f"{m.dtype} weight only grouped" if m.grouped else f"{m.dtype} weight only"
        others["weight only"] = rates.seconds(formula, m.rows, m.k * sum(m.columns))
    if keeps_float:
        others["float"] = floating
    best = min(others, key=others.__getitem__, default=None)
    pays = best is None or integer <= MARGIN * others[best]
    return Choice("int8" if pays else best, floating / integer)


def _integer_seconds(rates: Rates, m: Matmuls) -> float:
    n = sum(m.columns)
    quantize = m.rows * m.k * (2 * BYTES[m.dtype] + 1) * rates.byte if m.dynamic else 0.0
    if m.kernel == "packed":
        return quantize + rates.seconds("packed", m.rows, m.k * n)
    if m.kernel == "plain":
        return quantize + rates.seconds("integer", m.rows, m.k * n) + m.rows * n * (4 + BYTES[m.dtype]) * rates.byte
    if m.groups > MOST_INTEGER_GROUPS:  # the formula dequantizes both and multiplies in float32
        widened = (m.rows * m.k + m.k * n) * (1 + 4) * rates.byte
        return quantize + widened + rates.seconds("float32", m.rows, m.k * n)
    return quantize + m.groups * rates.seconds("group", m.rows, m.k // m.groups * n)
