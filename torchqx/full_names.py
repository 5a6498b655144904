"""Records with the names of the whole model.

A graph traced from a part of a model (a layer compiled on its own, what follows a graph break) names its sites from
that part, and serves every instance of it. The parameters that came in tell which instance it was.
"""

from dataclasses import replace

from torch.nn import Module

from torchqx.plan import SiteRecord
from torchqx.session import Session
from torchqx.site_state import SiteState


def linear_records(session: Session, model: Module) -> dict[SiteState, SiteRecord]:
    """The record of each state that ``model``'s parameters belong to."""
    names = _names(model)
    records = {}
    for state in session.states_in(model):
        here = {i: names[id(w)] for i, w in state.alive().items() if id(w) in names}
        first = next(iter(here))
        # An operation whose parameter was replaced has a state, and so a record, of its own.
        record = replace(state.record, operations=[state.record.operations[i] for i in here],
                         weights=[state.record.weights[i] for i in here])
        records[state] = renamed(record, prefix(state.record.weights[first], here[first]))
    return records


def scan_records(state: SiteState, record: SiteRecord, index: int | None = None) -> list[SiteRecord]:
    """The records of the scans and convolutions whose scales a state's weights (or that of operation ``index``) carry.

    Args:
        record: the state's own, with the names of the whole model.
    """
    before = prefix(state.record.weights[0], record.weights[0])
    indices = range(len(state.operations)) if index is None else (index,)
    return [renamed(r, before) for i in indices for r in state.scan_records(i)]


def other_records(session: Session, model: Module) -> list[SiteRecord]:
    """Records of everything in ``model`` that no linear site's state knows of, each key once."""
    names = _names(model)
    records: dict[str, SiteRecord] = {}
    for parameter in model.parameters():
        for local, record in session.records_at(parameter):
            full = renamed(record, prefix(local, names[id(parameter)]))
            records[full.key] = full
    for state, record in linear_records(session, model).items():
        for known in scan_records(state, record):
            records.pop(known.key, None)
    return list(records.values())


def renamed(record: SiteRecord, before: str) -> SiteRecord:
    """``record`` with ``before`` in front of its keys and weights."""
    def full(key: str) -> str:
        return (before + key).replace(".:", ":")

    return replace(record, key=full(record.key), operations=[full(o) for o in record.operations],
                   weights=[before + w for w in record.weights])


def prefix(local: str, full: str) -> str:
    """What stands before a part's own name for a parameter in the whole model's name for it."""
    return full.removesuffix(local) if full.endswith(local) else ""


def _names(model: Module) -> dict[int, str]:
    return {id(p): n for n, p in model.named_parameters(remove_duplicate=False)}
