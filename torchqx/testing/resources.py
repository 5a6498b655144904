"""What a compiled kernel takes of the GPU, read with the tools that Triton brings along: no driver, no CUDA toolkit."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triton import knobs
from triton.backends.nvidia.compiler import get_ptxas

from torchqx.errors import UnsupportedError

MATRIX_INSTRUCTIONS = ("IMMA", "IGMMA", "HMMA", "HGMMA", "QGMMA", "DMMA")


@dataclass(frozen=True)
class Resources:
    """Of one kernel for one architecture.

    Attributes:
        registers: per thread (AMD: vector registers).
        shared: bytes of shared memory per block.
        spills: bytes per thread written to memory for want of registers (AMD: registers spilled, times 4).
        stack: bytes of local memory per thread.
        matrix_instructions: tensor-core instruction -> how many stand in the code ("IMMA": int8; AMD: "mfma").
        config: block sizes, warps and stages, where a configuration was chosen.
    """

    kernel: str
    arch: str
    registers: int
    shared: int
    spills: int
    stack: int
    warps: int
    matrix_instructions: dict[str, int]
    config: str = ""


def resources(compiled: Any, config: str = "") -> Resources:
    """Those of a ``triton.compiler.CompiledKernel``.

    Raises:
        UnsupportedError: a tool does not say what it says in the supported versions.
    """
    read = _amd if compiled.metadata.target.backend == "hip" else _nvidia
    return read(compiled, config)


def _nvidia(compiled: Any, config: str) -> Resources:
    meta, ptx = compiled.metadata, compiled.asm["ptx"]
    arch = _found(r"\.target\s+(sm_\w+)", ptx, "ptx")[1]
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        binary.write_bytes(compiled.asm["cubin"])
        assembler = Path(get_ptxas(meta.target.arch).path)
        said = _tool(assembler, "-v", f"--gpu-name={arch}", str(source), "-o", str(Path(folder, "again.cubin")))
        code = _tool(Path(knobs.nvidia.nvdisasm.path), "-c", str(binary))
    stack = _found(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said, assembler.name)
    registers = _found(r"Used (\d+) registers", said, assembler.name)
    instructions = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+\s+)?([A-Z0-9]+)", code, re.MULTILINE)
    matrix = {name: instructions.count(name) for name in MATRIX_INSTRUCTIONS if name in instructions}
    return Resources(meta.name, f"sm_{meta.target.arch}", int(registers[1]), meta.shared, int(stack[2]), int(stack[1]),
                     meta.num_warps, matrix, config)


def _amd(compiled: Any, config: str) -> Resources:
    meta, code = compiled.metadata, compiled.asm["amdgcn"]

    def number(key: str) -> int:
        return int(_found(rf"\.{key}:\s+(\d+)", code, "amdgcn")[1])

    spilled = number("vgpr_spill_count") + number("sgpr_spill_count")
    mfma = len(re.findall(r"\bv_mfma", code))
    return Resources(meta.name, meta.target.arch, number("vgpr_count"), meta.shared, 4 * spilled,
                     number("private_segment_fixed_size"), meta.num_warps, {"mfma": mfma} if mfma else {}, config)


def _tool(path: Path, *arguments: str) -> str:
    """All that a tool says. Raises UnsupportedError where it fails."""
    ran = subprocess.run([str(path), *arguments], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise UnsupportedError(f"{path.name} failed: {ran.stderr[-500:]}", where="torchqx.testing.resources",
                               remedy="check the installation of triton.")
    return ran.stdout + ran.stderr


def _found(pattern: str, text: str, source: str) -> re.Match[str]:
    found = re.search(pattern, text)
    if found is None:
        raise UnsupportedError(f"{source} has no {pattern}", where="torchqx.testing.resources",
                               remedy="see how this triton version words it.")
    return found
