"""Triton is a dependency on Linux alone: without it everything imports."""

import subprocess
import sys

PROGRAM = """
import importlib, pkgutil, sys
sys.modules["triton"] = None
from torchqx import inductor_kernels
for package in pkgutil.iter_modules(inductor_kernels.__path__):
    importlib.import_module(f"torchqx.inductor_kernels.{package.name}")
    print(package.name)
"""


def test_importable_without_triton():
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert {"hadamard", "int8_linear", "chunk_scan", "state_update"} <= set(result.stdout.split())
