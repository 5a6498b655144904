"""What Dynamo need not check before every call: the components of the model's storage tensors.

Dynamo guards a tensor subclass part by part (type, dtype, sizes and marks of every component). The compiled graph reads
none of the components that Dynamo saw: the runner looks each weight up by identity when it is called, and rewrites the
graph anew where another kind of weight came in. So the guards on the weight itself (class, shape, dtype, device) do.
"""

from collections.abc import Iterable

from torch._dynamo.source import ChainedSource, SubclassAttrListSource
from torch._guards import Guard, Source, TracingContext
from torch.fx import Node

from torchqx.storage import QuantizedWeight

METADATA = "TENSOR_SUBCLASS_METADATA_MATCH"
TENSORS = frozenset([*QuantizedWeight.tensor_data_names, *QuantizedWeight.optional_tensor_data_names])


def drop_component_guards(placeholders: Iterable[Node]) -> None:
    """Drop them from the trace at hand, from which the graph with ``placeholders`` comes.

    A component that the graph reads itself, because the model's own code does, is a placeholder and keeps its guards.
    """
    tracing = TracingContext.try_get()
    if tracing is None:
        return
    arguments = [a for n in placeholders if (a := n.meta.get("grapharg")) is not None]
    read = {a.source for a in arguments}
    weights = {a.source for a in arguments if isinstance(a.example, QuantizedWeight)}
    guards = tracing.guards_context.dynamo_guards.inner
    for guard in [g for g in guards if _inside(g, weights, read)]:
        guards.discard(guard)


def _inside(guard: Guard, weights: set[Source], read: set[Source]) -> bool:
    source = guard.originating_source
    if source in weights:
        return guard.create_fn_name() == METADATA
    while isinstance(source, ChainedSource) and source not in read:
        if source.base in weights:
            return isinstance(source, SubclassAttrListSource) or getattr(source, "member", None) in TENSORS
        source = source.base
    return False
