"""Inductor's whole way from a function to Triton code, for a GPU that is not there."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch_config
from torch._guards import detect_fake_mode
from torch._inductor import config as inductor_config
from torch._inductor import select_algorithm
from torch._inductor.compile_fx import compile_fx
from torch._inductor.graph import GraphLowering
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_flatten, tree_unflatten

from torchqx.errors import UnsupportedError
from torchqx.testing.attention import call_library_attention
from torchqx.testing.autotuner import Autotuner
from torchqx.testing.fake_cuda import fake_cuda, private
from torchqx.testing.program import GpuProgram, Grid
from torchqx.testing.wrapper import Launch, read_wrapper

CUDA = torch.device("cuda", 0)
TEMPLATES = {"max_autotune_gemm": True, "max_autotune_gemm_backends": "TRITON"}
# Nothing can be measured, so nothing may ask for it; and what is cached was made for a real device.
_SETTINGS = {"compile_threads": 1, "fx_graph_cache": False, "fx_graph_remote_cache": False,
             "autotune_local_cache": False, "benchmark_kernel": False,
             "benchmark_epilogue_fusion": False, "shape_padding": False, "triton.cudagraphs": False}

Choose = Callable[[Any], bool]


def lower_for_gpu(fn: Callable[..., Any], example_inputs: Sequence[Any], arch: str = "sm_90",
                  options: dict[str, Any] | None = None, choose: Choose | None = None) -> GpuProgram:
    """Lower a function, or a module with its parameters, through Dynamo and Inductor. Sizes are static.

    Args:
        example_inputs: CPU tensors (or trees of them) that say shapes, strides and dtypes; only tensors are inputs.
        options: Inductor's; default :data:`TEMPLATES`, which has Triton compute the matmuls.
        choose: which of Inductor's algorithms for a matmul is to be taken, the first that it accepts; default the
            first. Tuning needs a device.

    Returns:
        the program; its ``run`` takes inputs as the function does.

    Raises:
        UnsupportedError: an unknown architecture, a torch version that does not fit, or a function that is not one
            graph.
    """
    mode = FakeTensorMode()
    flat, structure = tree_flatten(tuple(example_inputs))
    own = dict(fn.state_dict(keep_vars=True)) if isinstance(fn, nn.Module) else {}
    fakes = [on_gpu(t, mode) for t in flat]
    held = {name: on_gpu(t, mode) for name, t in own.items()}
    lowered: list[_Lowered] = []

    def backend(gm: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        lowered.append(_Lowered(lower_graph(gm, inputs, arch, options, choose)))
        return lowered[-1]

    called = (lambda *inputs: torch.func.functional_call(fn, held, inputs)) if isinstance(fn, nn.Module) else fn
    torch._dynamo.reset()
    with fake_cuda(arch), mode, torch.no_grad():
        result = torch.compile(called, backend=backend, dynamic=False)(*tree_unflatten(fakes, structure))
    torch._dynamo.reset()
    if len(lowered) != 1:
        raise UnsupportedError(f"{len(lowered)} graphs", where="lower_for_gpu",
                               remedy="lower a function that Dynamo traces as one graph.")
    graph, program = lowered[0], lowered[0].program
    values = {id(fake): i for i, fake in enumerate([*fakes, *held.values()])}
    order = [values[id(a)] for a in graph.arguments]
    leaves, shape = tree_flatten(result)
    produced = {id(r): i for i, r in enumerate(graph.results)}

    def entry(*inputs: Any) -> Any:
        given = [*tree_flatten(inputs)[0], *(t.detach() for t in own.values())]
        results = graph.compiled(*(given[i] for i in order))
        return tree_unflatten([results[produced[id(leaf)]] if id(leaf) in produced else
                               given[values[id(leaf)]] if id(leaf) in values else leaf for leaf in leaves], shape)

    graph.compiled, program.entry = program.entry, entry
    return program


class _Lowered:
    """A lowered graph in Dynamo's hands: remembers with which tensors it is called, and what it returns."""

    def __init__(self, program: GpuProgram) -> None:
        self.program, self.compiled = program, program.entry
        self.arguments: Sequence[Any] = ()
        self.results: Sequence[Any] = ()

    def __call__(self, *arguments: Any) -> Any:
        self.arguments, self.results = arguments, self.compiled(*arguments)
        return self.results


def lower_graph(gm: GraphModule, inputs: Sequence[Any], arch: str = "sm_90", options: dict[str, Any] | None = None,
                choose: Choose | None = None) -> GpuProgram:
    """Lower a graph, whose ``inputs`` are fake CUDA tensors and sizes, through AOTAutograd and Inductor.

    The program's ``entry`` takes the graph's inputs and returns its outputs. Raises as :func:`lower_for_gpu`.
    """
    programs: list[GpuProgram] = []

    def keep_code(graph: GraphLowering) -> Any:
        code = private(graph, "codegen")()[0].value
        output = next(iter(reversed(graph.module.graph.nodes)))
        inputs = [n.meta["val"] for n in graph.module.graph.nodes if n.op == "placeholder"]
        fakes = [n.meta["val"] if isinstance(n, Node) else n for n in output.args[0]]
        text = read_wrapper(code)
        operations = sum(isinstance(n.target, OpOverload) and not n.target.is_view for n in graph.module.graph.nodes)
        grids = [_grid(launch) for launch in text.launches]
        programs.append(GpuProgram(arch, code, text, operations, grids, inputs, fakes))
        return SimpleNamespace(__file__="<no device>", call=programs[-1].call)

    private(GraphLowering, "compile_to_module")
    call_library_attention(gm)
    with ExitStack() as stack:
        stack.enter_context(fake_cuda(arch))
        stack.enter_context(inductor_config.patch(_known(_SETTINGS) | (TEMPLATES if options is None else options)))
        if (mode := detect_fake_mode(inputs)) is not None:
            stack.enter_context(mode)  # constants that passes make are fake then, too
        stack.enter_context(functorch_config.patch(enable_autograd_cache=False))
        stack.enter_context(_one_choice(choose))
        stack.enter_context(mock.patch.object(GraphLowering, "compile_to_module", keep_code))
        compiled = compile_fx(gm, list(inputs))
    if len(programs) != 1:
        raise UnsupportedError(f"Inductor made {len(programs)} programs of one graph", where="lower_graph",
                               remedy="lower without gradients.")
    programs[0].entry = compiled
    return programs[0]


def on_gpu(value: Any, mode: FakeTensorMode) -> Any:
    """A fake CUDA tensor like ``value``, which may be fake already; what is no tensor stays."""
    if not isinstance(value, Tensor) or value.device.type != "cpu":
        return value
    mode = value.fake_mode if isinstance(value, FakeTensor) else mode
    with fake_cuda(), mode:
        return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=CUDA)


def _known(settings: dict[str, Any]) -> dict[str, Any]:
    """Without those that this torch does not have."""
    return {name: value for name, value in settings.items() if name in inductor_config.get_config_copy()}


def _grid(launch: Launch) -> Grid | None:
    try:
        return Autotuner(launch.kernel).grid(launch.numbers)
    except TypeError:
        return None  # a size that is known only at run time


@contextmanager
def _one_choice(choose: Choose | None) -> Iterator[None]:
    """Leave Inductor one algorithm per matmul, so that it measures none."""
    def first(choices: list[Any]) -> list[Any]:
        wanted = choices if choose is None else [c for c in choices if choose(c)]
        if not wanted:
            raise UnsupportedError(f"none of {[c.name for c in choices]} was chosen", where="choose",
                                   remedy="accept one of them.")
        return wanted[:1]

    select_algorithm.add_preprocessing_fn(first)
    try:
        yield
    finally:
        select_algorithm.clear_preprocessing_fns()
