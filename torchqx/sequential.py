"""Sequential calibration: each site sees the activations of a model whose earlier sites are quantized already.

A walk goes through one graph, with all the batches that were remembered for it side by side, so that every node is
computed once per batch and only live values are held. A model that was called in several shapes has several graphs:
their walks go along together and wait for each other at every site, which is solved from the batches of all of them.
What a graph break parts is walked part by part, each on the float model's inputs.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.amp.autocast_mode import _enter_autocast, _exit_autocast
from torch.fx import Node
from torch.fx.node import map_arg
from torch.nn import Parameter

from torchqx.calibration import Watch
from torchqx.errors import TorchqxError
from torchqx.fx_passes.in_place import memory_of, written
from torchqx.fx_passes.sites import Form, LinearOp, LinearSite
from torchqx.fx_passes.sites.scans import named_arguments
from torchqx.progress import Progress, quiet
from torchqx.rows import conv_result, conv_rows, left_result, left_rows
from torchqx.scan_sites import known_scans, solve_scans
from torchqx.scan_state import ScanState
from torchqx.session import Call, Session
from torchqx.site_state import SiteState
from torchqx.storage import QuantizedWeight
from torchqx.storage_matmul import matmul_experts, matmul_rows

AUTOCAST = (_enter_autocast, _exit_autocast)


def solve_sequentially(session: Session, states: list[SiteState], progress: Progress) -> None:
    """Solve ``states``, in the order in which the session's remembered calls reach them.

    Args:
        progress: wraps the loop over the sites; see :data:`torchqx.progress.Progress`.

    Raises:
        NonFiniteError, ...: as :func:`torchqx.solve.solve_site`; the calls stay remembered.
    """
    unsolved: set[SiteState | ScanState] = {s for s in states if s.calibrating}
    unsolved |= {scan for s in unsolved for scan in s.scans.values() if scan.calibrating}
    groups: dict[tuple, list[Call]] = {}
    for call in session.batches:
        groups.setdefault((call.runner, *call.weights()), []).append(call)
    walks = [_Walk(calls, unsolved) for calls in groups.values() if unsolved & _states(calls[0])]
    for _ in progress(range(len(unsolved)), "solving"):
        standing = [w for w in walks if w.at is not None]
        if not standing:
            break  # the others were seen by no remembered call
        state = next((w.at for w in standing if all(o.at is w.at or w.at not in o.ahead for o in standing)),
                     standing[0].at)
        there = [w for w in standing if w.at is state]
        if not any(walk.repeats(state) for walk in there):  # else it keeps what all its uses showed in float
            state.forget_activations()
            for walk in there:
                walk.show()
        if isinstance(state, ScanState):
            state.solve()
        else:
            session.solve_linear(state)
        for walk in standing:
            walk.go_on()
    for state in states:
        solve_scans(state)
    session.batches = [c for c in session.batches if any(s.calibrating for s in _states(c))]


def solve_ready(session: Session, states: list[SiteState]) -> None:
    """Under ``torch.compile``: solve those of ``states`` that have seen enough calls, as the recipe asks for.

    Raises:
        NonFiniteError, ...: as :func:`torchqx.solve.solve_site`; those sites then calibrate from the beginning.
    """
    ready = [s for s in states if s.calibrating and s.calls >= session.recipe.calibration_steps]
    try:
        if session.recipe.calibration == "sequential":
            solve_sequentially(session, ready, quiet)
        session.solve(ready)
    except TorchqxError:
        restarted = {s for s in ready if s.calibrating}
        for state in restarted:
            state.restart()
        session.batches = [c for c in session.batches if not restarted & _states(c)]
        raise


def _states(call: Call) -> set[SiteState | ScanState]:
    found = {s for members in call.runner.calibration.states(call.args).values() for s in members}
    return found | {scan for s in found for scan in s.scans.values()}


class _Walk:
    """A way through the graph of ``calls``, up to the next site of ``unsolved``.

    Attributes:
        at: the state of that site; None at the end.
        here: the first node that is not computed yet.
        ahead: the states that this walk has not passed yet.
    """

    def __init__(self, calls: list[Call], unsolved: set[SiteState | ScanState]) -> None:
        self.runner, self.calls = calls[0].runner, calls
        self.states = self.runner.calibration.states(calls[0].args)
        self.scans = known_scans(self.runner.sites, self.states)
        self.ahead = _states(calls[0]) & unsolved
        self.environments = [dict(zip(self.runner.traced.placeholders, _own(c.args), strict=True)) for c in calls]
        self.autocasts = _autocasts(self.runner.gm.graph.nodes)
        self.here = next(iter(self.runner.gm.graph.nodes))
        self._steps = self._through()
        self.at: SiteState | ScanState | None = None
        self.go_on()

    def go_on(self) -> None:
        """To the next state that still calibrates; stays where the one at hand does."""
        while self.at is None or not self.at.calibrating:
            self.ahead.discard(self.at)
            self.at = next(self._steps, None)
            if self.at is None:
                return

    def repeats(self, state: SiteState | ScanState) -> bool:
        """Whether several sites of the graph share ``state`` (a block that is called again with the same weights)."""
        return sum(state in members for members in self.states.values()) > 1

    def show(self) -> None:
        """Show the state at hand what reaches its site now."""
        state = self.at
        if isinstance(state, ScanState):
            self._show_scan(state)
            return
        site = next(site for site, members in self.states.items() if state in members)
        for environment, call in zip(self.environments, self.calls, strict=True):
            watch = Watch({site: [state]}, {site: None}, self.runner.calibration.padding(call.args))
            for node, show in watch.activations().items():
                show(environment[node])
            if state.samples and state.sample_call is call:
                state.samples[0].x = environment[site.x].float()

    def _show_scan(self, state: ScanState) -> None:
        """A matmul that takes over the range of the scan's x stands before the scan: what lies between is computed by
        float weights for this once."""
        site = next(site for site, other in self.scans.items() if other is state)
        between, node = [], self.here
        while node is not site.node:
            between.append(node)
            node = node.next
        for environment, call in zip(self.environments, self.calls, strict=True):
            values = _apart(environment, between)
            for node in between:
                if node.target not in AUTOCAST:
                    with self._autocast(call, node):
                        values[node] = _float(self.runner, node, values)
            given = map_arg(named_arguments(site.node), values.__getitem__)
            state.observe(site, self.runner.calibration.padding(call.args), given)

    def _through(self) -> Iterator[SiteState | ScanState]:
        nodes = list(self.runner.gm.graph.nodes)
        scans = {site.node: state for site, state in self.scans.items()}
        operations = {op.node: (site, op) for site in self.states for op in site.ops}
        dying = _last_uses(nodes, operations)
        for node in nodes:
            self.here = node
            if node.op in ("placeholder", "output") or node.target in AUTOCAST:
                continue
            if node in operations:
                site, op = operations[node]
                members = dict.fromkeys(self.states[site])
                yield from [s.range_from for s in members if s in self.ahead and s.range_from in self.ahead]
                yield from [s for s in members if s in self.ahead]
                self._compute(node, lambda environment, op=op: _quantized(self.runner, op, environment))
            elif node in scans:
                yield from {scans[node]} & self.ahead
                self._compute(node, lambda env, node=node: _scanned(self.runner, node, scans[node], env))
            else:
                self._compute(node, lambda environment, node=node: _float(self.runner, node, environment))
            for environment in self.environments:
                for dead in dying.get(node, ()):
                    environment.pop(dead, None)

    def _compute(self, node: Node, value: Callable[[dict[Node, Any]], Any]) -> None:
        for environment, call in zip(self.environments, self.calls, strict=True):
            with self._autocast(call, node):
                environment[node] = value(environment)

    def _autocast(self, call: Call, node: Node) -> ExitStack:
        """That of the call and of the blocks around ``node``: on for one value, so that no solver runs under it."""
        stack = ExitStack()
        for autocast in (*call.autocast, *self.autocasts[node]):
            stack.enter_context(autocast)
        return stack


def _own(args: list[Any]) -> list[Any]:
    """Copies, since the graph may write to them and the call may be walked again; of parameters, themselves."""
    return [a.clone() if isinstance(a, Tensor) and not isinstance(a, Parameter) else a for a in args]


def _apart(environment: dict[Node, Any], nodes: list[Node]) -> dict[Node, Any]:
    """The values, with copies of those that ``nodes`` write to; views of one memory stay views of one."""
    memory = {memory_of(target) for n in nodes if (target := written(n)) is not None}
    changing = [n for n in environment if memory_of(n) in memory]
    return environment | dict(zip(changing, copy.deepcopy([environment[n] for n in changing]), strict=True))


def _autocasts(nodes: Iterable[Node]) -> dict[Node, tuple[torch.autocast, ...]]:
    """Node -> the graph's autocast blocks that it is in, outermost first."""
    opened: dict[Node, torch.autocast] = {}
    found = {}
    for node in nodes:
        if node.target is _enter_autocast:
            opened[node] = torch.autocast(*node.args)
        elif node.target is _exit_autocast:
            del opened[node.args[0]]
        found[node] = tuple(opened.values())
    return found


def _last_uses(nodes: list[Node], operations: dict[Node, tuple[LinearSite, LinearOp]]) -> dict[Node, list[Node]]:
    """Node -> the computed values that nothing after it reads. A quantized matmul reads what its views were made of."""
    reads = {node: [n for n in (site.x, op.x, op.bias, op.offsets) if n is not None]
             for node, (site, op) in operations.items()}
    last = {parent: n for n in nodes for parent in (*n.all_input_nodes, *reads.get(n, ()))}
    dying: dict[Node, list[Node]] = {}
    for parent, reader in last.items():
        if parent.op != "placeholder":
            dying.setdefault(reader, []).append(parent)
    return dying


def _quantized(runner: Any, op: LinearOp, environment: dict[Node, Any]) -> Any:
    weight = environment[op.weight]
    state = None if isinstance(weight, QuantizedWeight) else runner.session.states.get(weight)
    stored = None if state is None else state.quantized(weight)
    if stored is None:
        return _float(runner, op.node, environment)
    x, bias = environment[op.x], None if op.bias is None else environment[op.bias]
    if op.form is Form.EXPERTS:
        return matmul_experts(x, stored, environment[op.offsets])
    if op.form is Form.CONV:
        return conv_result(matmul_rows(conv_rows(x, tuple(weight.shape[2:])), stored, bias))
    if op.form is Form.LEFT:
        return left_result(matmul_rows(left_rows(x), stored, bias))
    return matmul_rows(x, stored, bias)


def _scanned(runner: Any, node: Node, state: ScanState, environment: dict[Node, Any]) -> Any:
    if state.calibrating:
        return _float(runner, node, environment)
    with torch.no_grad():
        return state.run(node.target, map_arg(named_arguments(node), environment.__getitem__))


def _float(runner: Any, node: Node, environment: dict[Node, Any]) -> Any:
    args, kwargs = map_arg((node.args, node.kwargs), environment.__getitem__)
    if node.op == "get_attr":
        return getattr(runner.gm, node.target)
    with torch.no_grad():
        if node.op == "call_method":
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        target = runner.gm.get_submodule(node.target) if node.op == "call_module" else node.target
        value = target(*args, **kwargs)
    return value.detach() if isinstance(value, Tensor) and value.requires_grad else value
