"""Sequential calibration: each site sees the activations of a model whose earlier sites are quantized already.

All remembered batches walk through the graph side by side, node by node, so that every node is computed once per batch
and only live values are held.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from torchqx.calibration import Watch
from torchqx.errors import TorchqxError
from torchqx.fx_passes.sites import Form, LinearOp, LinearSite
from torchqx.progress import Progress, quiet
from torchqx.rows import conv_result, conv_rows, left_result, left_rows
from torchqx.session import Session
from torchqx.site_state import SiteState
from torchqx.storage import QuantizedWeight


def solve_sequentially(session: Session, progress: Progress) -> None:
    """Solve every site of the graphs that the session's remembered calls went through, in graph order.

    Args:
        progress: wraps the loop over a graph's nodes; see :data:`torchqx.progress.Progress`.
    """
    while session.batches:
        runner, args = session.batches[0]
        _walk(runner, _take(runner, args), lambda state: True, progress)


def solve_ready(runner: Any, states: list[SiteState], args: Sequence[Any]) -> None:
    """Under ``torch.compile``: solve those of ``states`` that have seen enough calls, as the recipe asks for.

    Raises:
        NonFiniteError, ...: as :func:`torchqx.solve.solve_site`; those sites then calibrate from the beginning.
    """
    session = runner.session
    ready = [s for s in states if s.calibrating and s.calls >= session.recipe.calibration_steps]
    try:
        if ready and session.recipe.calibration == "sequential":
            _walk(runner, _take(runner, args), ready.__contains__, quiet)
            session.batches = [(r, a) for r, a in session.batches if r.calibration.wanted(a)]
        else:
            session.solve(ready)
    except TorchqxError:
        for state in ready:
            if state.calibrating:
                state.restart()
        raise


def _take(runner: Any, args: Sequence[Any]) -> list[Sequence[Any]]:
    """Remove the remembered calls of ``runner`` with the weights of ``args``: layers of one class share a graph."""
    def weights(values: Sequence[Any]) -> list[int]:
        return [id(runner.weight(op, values)) for op in runner.operations]

    kept, taken = [], []
    for other, values in runner.session.batches:
        mine = other is runner and weights(values) == weights(args)
        (taken if mine else kept).append((other, values))
    runner.session.batches = kept
    return [values for _, values in taken]


def _walk(runner: Any, batches: list[Sequence[Any]], wanted: Callable[[SiteState], bool], progress: Progress) -> None:
    environments = [dict(zip(runner.traced.placeholders, args, strict=True)) for args in batches]
    states = runner.calibration.states(batches[0])
    operations = {op.node: (site, op) for site in states for op in site.ops}
    last_use = {parent: node for node in runner.gm.graph.nodes for parent in node.all_input_nodes}
    dying: dict[Node, list[Node]] = {}
    for parent, node in last_use.items():
        dying.setdefault(node, []).append(parent)
    for node in progress(list(runner.gm.graph.nodes), "solving"):
        if node.op in ("placeholder", "output"):
            continue
        if node in operations:
            site, op = operations[node]
            waiting = [s for s in dict.fromkeys(states[site]) if s.calibrating and wanted(s)]
            _solve(runner, site, waiting, environments, batches)
            for environment in environments:
                environment[node] = _quantized(runner, op, environment)
        else:
            for environment in environments:
                environment[node] = _compute(runner, node, environment)
        for environment in environments:
            for dead in dying.get(node, ()):
                environment.pop(dead, None)


def _solve(runner: Any, site: LinearSite, waiting: list[SiteState], environments: list[dict], batches: list) -> None:
    for state in waiting:
        state.forget_activations()
    for i, (environment, args) in enumerate(zip(environments, batches, strict=True)):
        watch = Watch({site: waiting}, {site: None}, runner.calibration.padding(args))
        for node, show in watch.activations().items():
            show(environment[node])
        for state in waiting:
            if state.samples and i == state.sample_call:
                state.samples[0].x = environment[site.x].float()
    runner.session.solve(waiting)


def _quantized(runner: Any, op: LinearOp, environment: dict[Node, Any]) -> Any:
    weight = environment[op.weight]
    state = None if isinstance(weight, QuantizedWeight) else runner.session.states.get(weight)
    stored = None if state is None else state.quantized(weight)
    if stored is None or op.form is Form.EXPERTS:
        return _compute(runner, op.node, environment)
    x, bias = environment[op.x], None if op.bias is None else environment[op.bias]
    if op.form is Form.CONV:
        return conv_result(stored.matmul_rows(conv_rows(x, tuple(weight.shape[2:])), bias))
    if op.form is Form.LEFT:
        return left_result(stored.matmul_rows(left_rows(x), bias))
    return stored.matmul_rows(x, bias)


def _compute(runner: Any, node: Node, environment: dict[Node, Any]) -> Any:
    args, kwargs = map_arg((node.args, node.kwargs), environment.__getitem__)
    if node.op == "get_attr":
        return getattr(runner.gm, node.target)
    with torch.no_grad():
        if node.op == "call_method":
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        target = runner.gm.get_submodule(node.target) if node.op == "call_module" else node.target
        value = target(*args, **kwargs)
    return value.detach() if isinstance(value, Tensor) and value.requires_grad else value
