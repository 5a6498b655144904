"""Removes nodes that do nothing, and spellings that hide what they are, so that no later pass has to look through them.

    before   dropout(x, 0.1, False)      x.to(dtype of x)                      after   x
    before   flatten(input=x, start_dim=1)                                     after   flatten(x, start_dim=1)
    before   addmm(b, x.view(-1, K), W [K, N]).view(..., N)                    after   linear(x, W.t(), b)
    before   0.5 * x * (1.0 + tanh(...))                                       after   gelu(x, approximate="tanh")
"""

import inspect
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.fx import GraphModule, Node
from torch.nn import Parameter

from torchqx.fx_passes.activations import name_activations
from torchqx.fx_passes.erase import erase_upwards
from torchqx.fx_passes.in_place import memory_of, written_between
from torchqx.fx_passes.sites.ops import fake, op_name, same_size


def canonicalize(gm: GraphModule) -> GraphModule:
    """Rewrite ``gm`` in place and return it."""
    for node in list(gm.graph.nodes):
        _place_operands(node)
        if _evaluation_dropout(node) or _same_dtype(node):
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)
        elif node.op == "call_function" and node.target is torch._C._log_api_usage_once:
            gm.graph.erase_node(node)
        elif node.op == "call_function" and node.target is torch.addmm:
            _unflatten(node)
    return name_activations(gm)


def _place_operands(node: Node) -> None:
    """Make the tensor that a function acts on its first argument, where every pass looks for it, and what is added to
    it or multiplies it the second."""
    if node.op == "call_function" and not node.args and "input" in node.kwargs and _begins_with_input(node.target):
        _place(node, "input")
    if len(node.args) == 1 and "other" in node.kwargs and op_name(node) in ("add", "sub", "mul", "div"):
        _place(node, "other")


def _place(node: Node, name: str) -> None:
    node.args = (*node.args, node.kwargs[name])
    node.kwargs = {key: value for key, value in node.kwargs.items() if key != name}


def _begins_with_input(function: Callable) -> bool:
    """Not so for ``where`` and ``searchsorted``."""
    try:
        first = next(iter(inspect.signature(function).parameters.values()), None)
        return first is not None and first.name == "input" and first.kind is first.POSITIONAL_OR_KEYWORD
    except ValueError:  # a built-in one: torch's schemas tell, most of which say "self" for "input"
        packet = getattr(torch.ops.aten, function.__name__, None)
        firsts = [a[0] for o in (packet.overloads() if packet else ()) if (a := getattr(packet, o)._schema.arguments)]
        names = {first.name for first in firsts if isinstance(first.type, torch.TensorType)}
        return bool(names) and names <= {"self", "input"}


def _evaluation_dropout(node: Node) -> bool:
    if node.op != "call_function" or node.target not in (F.dropout, torch.dropout) or not node.args:
        return False
    training = node.kwargs.get("training", node.kwargs.get("train", node.args[2] if len(node.args) > 2 else True))
    return training is False


def _same_dtype(node: Node) -> bool:
    if node.op != "call_method" or node.target != "to" or node.kwargs or len(node.args) != 2:
        return False
    source = node.args[0].meta.get("example_value") if isinstance(node.args[0], Node) else None
    return isinstance(source, torch.Tensor) and isinstance(node.args[1], torch.dtype) and source.dtype == node.args[1]


def _unflatten(product: Node) -> None:
    """GPT-2's Conv1D flattens the rows of its activation and gives the result its shape back."""
    if product.kwargs or len(product.args) != 3 or len(product.users) != 1:
        return
    bias, rows, weight = product.args
    result = next(iter(product.users))
    if not (_reshapes(result) and _reshapes(rows)) or not isinstance(fake(weight), Parameter) or fake(weight).ndim != 2:
        return
    x = rows.args[0]
    vector = isinstance(fake(bias), Parameter) and fake(bias).shape == fake(weight).shape[1:]
    leads = fake(x).shape[:-1], fake(result).shape[:-1]
    if not vector or len(leads[0]) != len(leads[1]) or not all(map(same_size, *leads)):
        return
    if not same_size(fake(result).shape[-1], fake(weight).shape[1]) or written_between(x, x, product):
        return
    if not same_size(fake(x).shape[-1], fake(weight).shape[0]):
        return
    graph = product.graph
    with graph.inserting_before(product):
        turned = graph.call_method("t", (weight,))
        turned.meta["example_value"] = fake(weight).t()
        linear = graph.call_function(torch._C._nn.linear, (x, turned, bias))
    linear.meta.update(product.meta | {"example_value": fake(result)})  # a site is named after its product
    result.replace_all_uses_with(linear)
    erase_upwards(result)


def _reshapes(node: Node) -> bool:
    """A view, in the same dtype, of the tensor it is called on."""
    if op_name(node) not in ("view", "reshape") or fake(node) is None or fake(node.args[0]) is None:
        return False
    memory = memory_of(node)
    return fake(node).dtype == fake(node.args[0]).dtype and memory is not None and memory == memory_of(node.args[0])
