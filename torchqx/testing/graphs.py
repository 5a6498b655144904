"""The backend's own graphs on a GPU that is not there: sites, rewrite, derived inputs and lowering as for a user.

The model is quantized, traced and called on the CPU. Where the backend would compile the rewritten graph, the graph's
devices become cuda:0 and the GPU's program takes its place; each call of the model then runs that program, interpreted.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_map

from torchqx import executable, runner
from torchqx.fx_passes.lower import OpStructure
from torchqx.fx_passes.quantize import QuantizedGraph
from torchqx.testing.fake_cuda import fake_cuda
from torchqx.testing.lowering import CUDA, Choose, lower_graph, on_gpu
from torchqx.testing.program import GpuProgram


@contextmanager
def torchqx_on_gpu(arch: str = "sm_90", options: dict[str, Any] | None = None,
                   choose: Choose | None = None, interpreted: bool = True) -> Iterator[list[GpuProgram]]:
    """Inside, what ``torch.compile(..., backend="torchqx")`` compiles is lowered for ``arch``, and called interpreted.

    Args:
        interpreted: whether calls compute; otherwise they give zeros, at once.

    Yields:
        the programs, in the order in which they are made. Arguments and errors are those of ``lower_for_gpu``.
    """
    programs: list[GpuProgram] = []
    mode = FakeTensorMode()
    structures_of, quantize_graph, show_values_of = runner.structures_of, runner.quantize_graph, executable.show_values

    def structures_on_gpu(ops: list[Any]) -> dict[Node, OpStructure]:
        return {node: replace(s, device=CUDA) for node, s in structures_of(ops).items()}

    def graph_on_gpu(*args: Any) -> QuantizedGraph:
        graph = quantize_graph(*args)
        move_to_gpu(graph.module, mode)  # here, so that the passes that follow see the device, too
        return graph

    def show_values(gm: GraphModule, fakes: Sequence[Any], of: FakeTensorMode) -> None:
        with fake_cuda(arch):
            show_values_of(gm, [on_gpu(f, mode) for f in fakes], of)

    def compile_fx(gm: GraphModule, inputs: Sequence[Any], **_: Any) -> Any:
        programs.append(lower_graph(gm, [on_gpu(i, mode) for i in inputs], arch, options, choose))
        programs[-1].interpreted = interpreted
        return programs[-1].entry

    with mock.patch.object(runner, "structures_of", structures_on_gpu), \
            mock.patch.object(runner, "quantize_graph", graph_on_gpu), \
            mock.patch.object(executable, "show_values", show_values), \
            mock.patch.object(executable, "compile_fx", compile_fx):
        yield programs


def move_to_gpu(gm: GraphModule, mode: FakeTensorMode) -> None:
    """Every device that the graph of CPU tensors names, and every value it remembers, becomes cuda:0; in place."""
    def moved(value: Any) -> Any:
        return CUDA if isinstance(value, torch.device) and value.type == "cpu" else value

    for module in (m for m in gm.modules() if isinstance(m, GraphModule)):
        for node in module.graph.nodes:
            node.args, node.kwargs = tree_map(moved, node.args), tree_map(moved, node.kwargs)
            if "example_value" in node.meta:
                node.meta["example_value"] = tree_map(lambda v: on_gpu(v, mode), node.meta["example_value"])
        module.recompile()
