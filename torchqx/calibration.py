"""Calibrating calls of one graph: the float model answers, observers watch, and what has seen enough is solved."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from torchqx.folding import plan_states
from torchqx.fx_passes.in_place import written_between
from torchqx.fx_passes.observe import ObservingInterpreter
from torchqx.fx_passes.regions import Region, find_region
from torchqx.fx_passes.sites import Form, GraphSites, LinearSite
from torchqx.recipe import LEFT_OUT, AffineRecipe
from torchqx.repeats import digest_of
from torchqx.scan_sites import watch_scans
from torchqx.session import Call
from torchqx.site_state import SiteState
from torchqx.solve import FLOAT_DTYPES
from torchqx.storage import QuantizedWeight


def skip_reason(site: LinearSite, weights: list[Tensor], sites: GraphSites, recipe: AffineRecipe) -> str:
    """Why a linear site is not to be quantized; empty if it is."""
    if not recipe.selects(site.key):
        return LEFT_OUT
    if any(op.is_head for op in site.ops) and not recipe.quantize_head:
        return "output head: kept in float unless quantize_head=True"
    if any(written_between(op.x, op.x, op.node) for op in site.ops):
        return "its activation is written to in place before it is read"
    matmuls = {op.node: op for other in sites.linears for op in other.ops}
    for op, weight in zip(site.ops, weights, strict=True):
        readers = sites.shared_weights.get(op.weight, ())
        other = [n.name for n in readers if n not in matmuls]
        if other:
            return f"its weight is also read by {', '.join(other)}"
        if any((matmuls[n].form, matmuls[n].layout) != (op.form, op.layout) for n in readers):
            return "its weight is also multiplied in another layout"
        if weight.dtype not in FLOAT_DTYPES:
            return f"weights of {weight.dtype} are not supported"
    return ""


class Watch:
    """What one calibrating call shows to the states of a graph's sites.

    Args:
        states: one list per linear site of the graph: the state of each of its operations.
        digest: of the call; a state that has seen it before counts the call and looks at nothing.

    Attributes:
        open: sites that look at this call, with the states that take its statistics.
        counting: the states that calibrate, whether they look at it or not.
        call: the call as it is remembered, if it is.
    """

    def __init__(self, states: dict[LinearSite, list[SiteState]], regions: dict[LinearSite, Region | None],
                 padding: Tensor | None, digest: bytes = b"") -> None:
        self.padding, self.regions, self.digest = padding, regions, digest
        self.call: Call | None = None
        self.open: list[tuple[LinearSite, SiteState]] = []
        self.counting: dict[SiteState, None] = {}
        for site, members in states.items():
            calibrating = dict.fromkeys(s for s in members if s is not None and s.calibrating)
            self.counting |= calibrating
            self.open += [(site, s) for s in calibrating if digest not in s.digests]

    def whole(self, site: LinearSite, state: SiteState) -> bool:
        """Whether the state's operations are the site's: only then does the site's region speak of it."""
        return [op.key for op in site.ops] == [op.key for op in state.operations]

    def activations(self) -> dict[Node, Any]:
        """Node -> what to call with its value."""
        readers: dict[Node, list] = {}
        for site, state in self.open:
            kernel = tuple(site.ops[0].weight.meta["example_value"].shape[2:]) if state.form is Form.CONV else ()
            readers.setdefault(site.ops[0].x, []).append((state, kernel))

        def show(observers: list) -> Any:
            def call(value: Tensor) -> None:
                for state, kernel in observers:
                    state.observe(value, self.padding, kernel)
            return call

        return {node: show(observers) for node, observers in readers.items()}

    def kept(self) -> set[Node]:
        """Nodes whose values :meth:`finish` needs."""
        nodes: set[Node] = set()
        for site, state in self.open:
            nodes |= {op.bias for op in site.ops if op.bias is not None}
            region = self.regions[site]
            if region is not None and state.wants_region and self.whole(site, state):
                nodes |= {site.x, region.output, *region.externals}
        return nodes

    def finish(self, values: dict[Node, Any]) -> None:
        for site, state in self.open:
            by_key = {op.key: op for op in site.ops}
            for i, operation in enumerate(state.operations):
                op = by_key.get(operation.key)
                if op is not None and op.bias is not None and values[op.bias].dim() == 1:  # no [..., N] addend
                    state.biases[i] = values[op.bias]
            region = self.regions[site]
            if region is not None and state.wants_region and self.whole(site, state):
                state.observe_region(region, values[site.x], values, self.padding, self.call)
        for state in self.counting:
            state.calls += 1
            state.digests.add(self.digest)


class Calibration:
    """Decides for a graph's runner whether a call calibrates, and carries it out."""

    def __init__(self, runner: Any) -> None:
        self.runner, self.session, self.sites = runner, runner.session, runner.sites
        self.regions = {site: find_region(site, self.sites) for site in self.sites.linears}

    def states(self, args: Sequence[Any]) -> dict[LinearSite, list[SiteState]]:
        """The states of every linear site, for the weights that came in; none for a model that is converted already:
        what it holds in float was decided to be so."""
        if any(isinstance(self.runner.weight(op, args), QuantizedWeight) for op in self.runner.operations):
            return {}
        found = {}
        for site in self.sites.linears:
            weights = [self.runner.weight(op, args) for op in site.ops]
            names = [self.runner.names[op.weight] for op in site.ops]
            skip = skip_reason(site, weights, self.sites, self.session.recipe.for_linears(site.state_space))
            found[site] = self.session.state_of(site, weights, names, skip)
        return found

    def wanted(self, args: Sequence[Any]) -> bool:
        return self.session.calibration_only or any(s.calibrating for m in self.states(args).values() for s in m)

    def padding(self, args: Sequence[Any]) -> Tensor | None:
        """The call's padding mask, nonzero for real tokens."""
        if self.sites.padding_mask is None:
            return None
        mask = args[self.runner.position[self.sites.padding_mask]]
        return ~mask.bool() if self.sites.padding_mask_marks_padding else mask

    def __call__(self, args: Sequence[Any]) -> tuple[Any, list[SiteState]]:
        """The float result of the call, and the states that took its statistics.

        Whatever outlives the call is made outside inference mode, so that the next call need not be in it too.
        """
        with torch.inference_mode(False), torch.no_grad():
            states = self.states(args)
            if states and (fold := self.session.recipe.fold) != "none":
                found = plan_states(self.runner.gm, self.sites, states, self.runner.parameters(args),
                                    self.runner.names, heads=fold == "all")
                self.runner.tell(args, found)
            watch = Watch(states, self.regions, self.padding(args), digest_of(self.runner.gm.code, args))
            if watch.open:
                watch.call = self.session.remember(self.runner, args)
        before = watch_scans(self.sites, states, {s for _, s in watch.open}, self.session.recipe, watch.padding)
        interpreter = ObservingInterpreter(self.runner.gm, watch.activations(), watch.kept(), before)
        with torch.no_grad():
            outputs = interpreter.run(*args)
        with torch.inference_mode(False), torch.no_grad():
            watch.finish(interpreter.kept)
        return outputs, list(dict.fromkeys(s for members in states.values() for s in members))
