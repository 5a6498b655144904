"""Proving GPU code without a GPU: Inductor's Triton code for a device that is not there, counted, compiled, and run.

| name | does |
|---|---|
| :func:`lower_for_gpu` | a function or module -> :class:`GpuProgram` |
| :func:`torchqx_on_gpu` | the same for what the torchqx backend makes of a quantized model |
| :func:`compile_offline` | a hand-written Triton kernel -> registers, shared memory, spills |
| :func:`interpret` | a hand-written Triton kernel on CPU tensors |
| :func:`fake_cuda` | the device itself, for other uses |

    program = lower_for_gpu(layer, (x,), arch="sm_90")
    program.kernels, program.kernel_count, program.extern_calls, program.grids
    program.compile()    # kernel name -> Resources, by Triton's own compiler and assembler
    program.run(x)       # kernels and launches on CPU tensors, by Triton's interpreter
"""

from torchqx.testing.devices import ARCHITECTURES
from torchqx.testing.fake_cuda import fake_cuda
from torchqx.testing.graphs import torchqx_on_gpu
from torchqx.testing.interpreter import interpret
from torchqx.testing.lowering import TEMPLATES, lower_for_gpu
from torchqx.testing.offline import compile_offline
from torchqx.testing.program import GpuProgram
from torchqx.testing.resources import Resources

__all__ = [
    "ARCHITECTURES",
    "TEMPLATES",
    "GpuProgram",
    "Resources",
    "compile_offline",
    "fake_cuda",
    "interpret",
    "lower_for_gpu",
    "torchqx_on_gpu",
]
