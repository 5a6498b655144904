"""The generated code of the main blocks, kept in golden_files/, so that a change of it shows in review.

    python -m tests.gpu.golden            compare
    python -m tests.gpu.golden --write    rewrite

Only under the versions of constraints.txt: others write other code.
"""

import ast
import sys
from difflib import unified_diff
from pathlib import Path

from tests.gpu.blocks import blocks
from tests.gpu.checks import is_pinned
from torchqx.testing import GpuProgram, lower_for_gpu

FILES = Path(__file__).with_name("golden_files")
KEPT = {
    "norm, shift, scale, quantize": "norm_quantize.txt",
    "norm, quantize per token": "norm_quantize_per_token.txt",
    "int8 linear, bias, gelu, residual, requantize": "int8_linear_gelu_requantize.txt",
    "int8 linear, gated product, quantize": "int8_linear_gated.txt",
    "gated product, rotation, quantize": "rotation_quantize.txt",
    "gated product, rotation, quantize per token": "rotation_quantize_per_token.txt",
}


def normalized(program: GpuProgram) -> str:
    """Launches with their grids, then each kernel's function without comments, decorators and its numbered name."""
    lines = [f"{launch.kernel.kind} {grid}" for launch, grid in zip(program.text.launches, program.grids, strict=True)]
    for kernel in program.kernels:
        (function,) = (n for n in ast.walk(ast.parse(kernel.source)) if isinstance(n, ast.FunctionDef))
        function.name, function.decorator_list = kernel.kind, []
        lines += ["", f"# {', '.join(kernel.origins)}", ast.unparse(function)]
    return "\n".join([*lines, *(f"call {name}" for name in program.extern_calls), ""])


def current() -> dict[str, str]:
    """File name -> what it should hold now."""
    return {KEPT[b.name]: normalized(lower_for_gpu(b.fn, b.inputs)) for b in blocks() if b.name in KEPT}


def difference(name: str, text: str) -> str:
    """Of the kept file ``name`` and ``text``, as a diff; empty if equal."""
    path = FILES / name
    kept = path.read_text() if path.exists() else ""
    return "\n".join(unified_diff(kept.splitlines(), text.splitlines(), f"kept {name}", f"now {name}", lineterm=""))


def main(arguments: list[str]) -> int:
    if not is_pinned():
        print("the installed torch and triton are not those of constraints.txt")
        return 1
    differences = []
    for name, text in current().items():
        if "--write" in arguments:
            (FILES / name).write_text(text)
        elif found := difference(name, text):
            differences.append(found)
    print("\n".join(differences) or f"{len(KEPT)} files agree")
    return bool(differences)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
