"""A quantized graph, lowered for the shapes under which Dynamo traced it, run with tensors known only at the call."""

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import SymFloat, SymInt, Tensor
from torch._dynamo.convert_frame import compile_lock
from torch._dynamo.exc import TensorifyScalarRestartAnalysis
from torch._dynamo.symbolic_convert import TensorifyState
from torch._guards import TracingContext, tracing
from torch._inductor.compile_fx import compile_fx
from torch._ops import OpOverload, OpOverloadPacket
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node

from torchqx.errors import TorchqxWarning
from torchqx.fx_passes.derived import Derived
from torchqx.fx_passes.quantize import QuantizedGraph
from torchqx.warm_start import PACKAGE, cacheable_functions, show_values

FUSED_READERS = 8
"""Readers of one tensor, in order, with which Inductor tries to fuse each. What all layers read (position embeddings)
has readers that lie layers apart and never fuse; with Inductor's 64, a deep model's layers are all tried in pairs."""


class TracedInputs:
    """Dynamo's fake values of a graph's placeholders, kept so that the graph can be lowered after Dynamo is done.

    Attributes:
        fake: placeholder -> FakeTensor, SymInt, or a constant.
        guarded: how many of the guards on sizes Dynamo itself checks; None until the first lowering.
    """

    def __init__(self, placeholders: Sequence[Node], example_inputs: Sequence[Any]) -> None:
        self.placeholders = list(placeholders)
        self.fake = {n: n.meta.get("example_value", e) for n, e in zip(placeholders, example_inputs, strict=True)}
        modes = [v.fake_mode for v in self.fake.values() if isinstance(v, torch._subclasses.FakeTensor)]
        self.mode = modes[0] if modes else FakeTensorMode()
        self.guarded: int | None = None
        self.symbols = [i for i, n in enumerate(placeholders) if isinstance(self.fake[n], SymInt)]

    def guards(self) -> int:
        """How many guards on sizes there are."""
        return 0 if self.mode.shape_env is None else len(self.mode.shape_env.guards)

    def specialize_floats(self) -> None:
        """Have Dynamo trace again with floats as constants, where ``dynamic=True`` made them inputs.

        Inductor asks for the same while it lowers, but then Dynamo is done; and a norm's epsilon is a constant.

        Raises:
            TensorifyScalarRestartAnalysis: what Dynamo expects from a backend in that case.
        """
        memos = [getattr(v, "item_memo", None) for v in self.fake.values()]
        symbols = [m.node._expr.name for m in memos if isinstance(m, SymFloat) and hasattr(m.node._expr, "name")]
        fresh = [s for s in symbols if not TensorifyState.should_specialize(s)]
        for symbol in fresh:
            TensorifyState.specialize(symbol)
        if fresh:
            raise TensorifyScalarRestartAnalysis


class Executable:
    """``graph`` lowered by Inductor ("inductor"), or run node by node ("eager")."""

    def __init__(self, graph: QuantizedGraph, traced: TracedInputs, lowering: str, options: dict[str, Any]) -> None:
        self.graph, self.traced, self.lowering, self.options = graph, traced, lowering, options
        position = {n: i for i, n in enumerate(traced.placeholders)}
        self.sources: list[int | tuple[int, ...]] = [
            tuple(position[n] for n in item.sources) if isinstance(item, Derived) else position[item]
            for item in graph.inputs]
        self.compiled: Callable[..., Any] | None = graph.module.forward if lowering == "eager" else None
        self._guards: str | None = None
        self._known: set[tuple[int, ...]] = set()

    def prepare(self, derived: list[Tensor]) -> None:
        """Compile, if that has not happened; ``derived`` are the values of the derived inputs, in order."""
        if self.compiled is not None:
            return
        values = iter(derived)
        if self.traced.guarded is None:
            self.traced.guarded = self.traced.guards()
        with compile_lock, torch.inference_mode(False), torch.no_grad(), tracing(TracingContext(self.traced.mode)):
            fakes = [self.traced.mode.from_tensor(next(values), static_shapes=True) if isinstance(item, Derived)
                     else self.traced.fake[item] for item in self.graph.inputs]
            show_values(self.graph.module, fakes, self.traced.mode)
            settings = {"unsafe_marked_cacheable_functions": cacheable_functions(self.graph.module),
                        "max_fusion_buffer_group_pairwise_attempts": FUSED_READERS}
            if "TORCHINDUCTOR_SIZE_ASSERTS" not in os.environ and _knows_its_layouts(self.graph.module):
                # Checks of every operand of every call took a quarter of a decoding step's time outside of kernels.
                settings["size_asserts"] = False
            compiled = compile_fx(self.graph.module, fakes, config_patches=settings | self.options)
        if self.traced.guards() > self.traced.guarded and self.traced.symbols:
            # Dynamo has made its guards already, so sizes that this lowering, or one before it, came to rely on are
            # checked here.
            environment = self.traced.mode.shape_env
            symbols = [self.traced.fake[self.traced.placeholders[i]] for i in self.traced.symbols]
            self._guards = environment.produce_guards_expression(
                symbols, guards=environment.guards[self.traced.guarded:])
        self.compiled = compiled

    def __call__(self, args: Sequence[Any], inputs: list[Any]) -> Any:
        """Run on ``inputs``; ``args`` are the original graph's arguments, for the sizes among them."""
        if self._guards is not None and not self._fits(args):
            return self.graph.module(*inputs)
        return self.compiled(*inputs)

    def _fits(self, args: Sequence[Any]) -> bool:
        sizes = tuple(int(args[i]) for i in self.traced.symbols)
        if sizes in self._known:
            return True
        if self.traced.mode.shape_env.evaluate_guards_expression(self._guards, sizes):
            self._known.add(sizes)
            return True
        warnings.warn(f"sizes {sizes} do not fit the compiled graph ({self._guards}); this call runs uncompiled",
                      TorchqxWarning, stacklevel=2)
        return False


def _knows_its_layouts(module: GraphModule) -> bool:
    """Whether all operators are torch's or ours: another's result may not lie in memory as it was said to."""
    targets = [n.target for n in module.graph.nodes if isinstance(n.target, OpOverload | OpOverloadPacket)]
    return {str(target).split(".")[0] for target in targets} <= {"aten", "prims", PACKAGE}
