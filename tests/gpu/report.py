"""Prints what the lowering makes of each block and layer; ``--write`` puts it into docs/gpu_lowering.md.

    python -m tests.gpu.report [--write]
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from tests.gpu.blocks import blocks
from tests.gpu.checks import relative_error, spilling
from tests.gpu.layers import LAYERS, lower_layer
from torchqx.testing import ARCHITECTURES, GpuProgram, Resources, lower_for_gpu

DOCUMENT = Path(__file__).parents[2] / "docs" / "gpu_lowering.md"
BEGIN, END = "<!-- table: python -m tests.gpu.report --write -->", "<!-- end of table -->"


@dataclass
class Measured:
    """One block: its program per architecture, and its interpreted and eager results."""

    name: str
    programs: dict[str, GpuProgram]
    result: Tensor | Sequence[Tensor]
    expected: Tensor | Sequence[Tensor]

    def row(self) -> str:
        """Of the table."""
        program = next(iter(self.programs.values()))
        reports = {arch: p.compile() for arch, p in self.programs.items()}
        taken = ", ".join(f"{arch} {_most(found, 'registers')}/{_most(found, 'spills')}"
                          for arch, found in reports.items())
        assert not any(spilling(found) for found in reports.values())
        calls = len(program.extern_calls)
        kernels = f"{program.kernel_count} + {calls} library" if calls else f"{program.kernel_count}"
        error = relative_error(self.result, self.expected)
        return f"| {self.name} | {program.operations} | {kernels} | {taken} | {error:.0e} |"


def _most(reports: dict[str, list[Resources]], what: str) -> int:
    return max(getattr(r, what) for kernel in reports.values() for r in kernel)


def measured() -> Iterator[Measured]:
    """Every block and layer, lowered for every architecture and compiling."""
    for block in blocks():
        programs = {arch: lower_for_gpu(block.fn, block.inputs, arch) for arch in ARCHITECTURES}
        for program in programs.values():
            program.start_compiling()
        yield Measured(block.name, programs, programs["sm_90"].run(*block.inputs), block.fn(*block.inputs))
    for layer in LAYERS:
        lowered = {arch: lower_layer(layer, arch, arch == "sm_90") for arch in ARCHITECTURES}
        for one in lowered.values():
            one.program.start_compiling()
        there = lowered["sm_90"]
        yield Measured(layer.name, {arch: one.program for arch, one in lowered.items()}, there.result, there.expected)


def main(arguments: list[str]) -> None:
    lines = [f"torch {version('torch').split('+')[0]}, triton {version('triton')}; registers/bytes spilled per thread, "
             "the most of any kernel", "",
             "| block | ATen operations | kernels | compiled: registers/spills | largest error |",
             "|---|---|---|---|---|"]
    print("\n".join(lines))
    for found in measured():
        lines.append(found.row())
        print(lines[-1], flush=True)
    if "--write" in arguments:
        text = DOCUMENT.read_text()
        before, after = text[: text.index(BEGIN)], text[text.index(END):]
        DOCUMENT.write_text("\n".join([before + BEGIN, *lines, after]))


if __name__ == "__main__":
    main(sys.argv[1:])
