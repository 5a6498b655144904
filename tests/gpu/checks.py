"""What is asked of a lowered program; each check returns what is wrong, in words, or nothing."""

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from torchqx.testing import GpuProgram, Resources

MOST_SPILLS = 0  # bytes per thread
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


def is_pinned() -> bool:
    """Whether torch and triton are those of constraints.txt: others fuse differently, and count other kernels."""
    pinned = dict(line.split("==") for line in CONSTRAINTS.read_text().splitlines() if "==" in line)
    return all(version(name).split("+")[0] == pinned[name] for name in ("torch", "triton"))


def wrong_launches(program: GpuProgram, launches: Sequence[str], extern: Sequence[str] = ()) -> list[str]:
    """Other kernels, or calls of libraries, than expected."""
    wrong = []
    if program.launched != list(launches):
        wrong.append(f"{program.kernel_count} kernels {program.launched} where {list(launches)} were expected")
    if program.extern_calls != tuple(extern):
        wrong.append(f"calls of {program.extern_calls} where {tuple(extern)} were expected")
    return wrong


def not_fused(program: GpuProgram, ops: Iterable[str]) -> list[str]:
    """Whether no single kernel computes all of ``ops``."""
    wanted = set(ops)
    if any(wanted <= set(kernel.origins) for kernel in program.kernels):
        return []
    return [f"no kernel holds all of {sorted(wanted)}: {[k.origins for k in program.kernels]}"]


def relative_error(result: Tensor | Sequence[Tensor], expected: Tensor | Sequence[Tensor]) -> float:
    """Largest of the results' errors in the Frobenius norm; NaN counts as infinite."""
    if isinstance(result, Tensor):
        result, expected = [result], [expected]
    worst = 0.0
    for r, e in zip(result, expected, strict=True):
        assert r.shape == e.shape
        assert r.dtype == e.dtype
        error = (r.double() - e.double()).norm() / e.double().norm().clamp(min=1e-30)
        worst = max(worst, float(torch.nan_to_num(error, nan=torch.inf)))
    return worst


def wrong_numbers(result: Tensor | Sequence[Tensor], expected: Tensor | Sequence[Tensor],
                  tolerance: float) -> list[str]:
    """An error above ``tolerance``."""
    error = relative_error(result, expected)
    return [] if error <= tolerance else [f"relative error {error:.2e} above {tolerance:.2e}"]


def spilling(reports: Mapping[str, Sequence[Resources]]) -> list[str]:
    """Kernels that spill more than MOST_SPILLS bytes per thread."""
    return [f"{r.kernel} for {r.arch} spills {r.spills} bytes ({r.config})"
            for kernel in reports.values() for r in kernel if r.spills > MOST_SPILLS]


def no_integer_matmul(reports: Mapping[str, Sequence[Resources]]) -> list[str]:
    """Whether no kernel multiplies integers on the tensor cores."""
    integer = {"IMMA", "IGMMA", "mfma"}
    used = {name for kernel in reports.values() for r in kernel for name in r.matrix_instructions}
    return [] if used & integer else [f"no integer matmul among {sorted(used)}"]
