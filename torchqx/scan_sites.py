"""State-space sites in calibration: who watches which call, and what is solved along with which matmul."""

from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

from torch import Tensor
from torch.fx import Node

from torchqx.fx_passes.sites import GraphSites, LinearSite, ScanSite
from torchqx.recipe import AffineRecipe
from torchqx.scan_state import ScanState
from torchqx.site_state import SiteState


def watch_scans(sites: GraphSites, states: dict[LinearSite, list[SiteState]], looking: Collection[SiteState],
                recipe: AffineRecipe, padding: Tensor | None) -> dict[Node, Callable[[dict[str, Any]], None]]:
    """Operator's node -> what to call with its arguments by name, for the sites that still calibrate.

    Args:
        states: one list per linear site of the graph: the state of each of its operations.
        looking: those to which the call shows something new.
        padding: the call's mask [B, L], nonzero for real steps.
    """
    quantization = recipe.scan_quantization()
    if quantization is None:
        return {}
    watched: dict[Node, Callable[[dict[str, Any]], None]] = {}
    for site, state, index in _carried(sites, states):
        if not recipe.selects(site.key) or not (state.calibrating or state.parameters is None):
            continue
        name = state.operations[index].weight_name
        scan = state.scans.setdefault((index, site.key), ScanState(site, name, quantization))
        if not state.calibrating:
            follow_carrier(state)
            continue
        if state in looking:
            watched[site.node] = partial(scan.observe, site, padding)
        for member in (member for linear in site.x_readers for member in states[linear]):
            member.range_from = scan
    return watched


def _carried(sites: GraphSites,
             states: dict[LinearSite, list[SiteState]]) -> Iterator[tuple[ScanSite, SiteState, int]]:
    """Every scan or convolution with the state of its carrier, and the carrier's place among the state's operations."""
    by_operation = {op: state for site, members in states.items() for op, state in zip(site.ops, members, strict=True)}
    for site in sites.scans:
        state = None if site.carrier is None else by_operation.get(site.carrier)
        if state is not None:
            yield site, state, [operation.key for operation in state.operations].index(site.carrier.key)


def known_scans(sites: GraphSites, states: dict[LinearSite, list[SiteState]]) -> dict[ScanSite, ScanState]:
    """The states of the scans and convolutions that calibration has seen."""
    return {site: state.scans[index, site.key] for site, state, index in _carried(sites, states)
            if (index, site.key) in state.scans}


def follow_carrier(state: SiteState) -> None:
    """Leave the scans and convolutions in float whose scales ``state``'s weights were to carry, if those stay float."""
    if state.calibrating or state.parameters is not None:
        return
    for (index, _), scan in state.scans.items():
        if not scan.in_float:
            scan.stay_float(state.record.status, f"its scales travel with {state.operations[index].key}, which stays "
                                                 f"float: {state.record.reason}")


def solve_scans(state: SiteState) -> None:
    """Solve the scans and convolutions whose scales ``state``'s weights carry; see :meth:`ScanState.solve`."""
    for scan in state.scans.values():
        scan.solve()
    shared: dict[str, list[tuple[ScanState, str]]] = {}
    for (_, key), scan in state.scans.items():
        role = {"conv": "x", "scan": "z"}[scan.kind]
        if scan.quantization.shared and role in scan.record.scales:
            shared.setdefault(key.rpartition(f":{scan.kind}:")[0], []).append((scan, role))
    for members in shared.values():
        limits = [scan.solved(role) for scan, role in members]
        if len({limit.numel() for limit in limits}) == 1 and len(limits) > 1:
            for scan, role in members:
                scan.share(role, max(limits, key=lambda limit: float(limit.amax())))
