"""Calibration over the ranks of ``torch.distributed``: statistics are merged, rank 0 solves, all get its answer."""

import torch.distributed as dist

from torchqx.errors import PlanMismatchError
from torchqx.session import Session
from torchqx.site_state import SiteState


def world() -> int:
    """Number of ranks; 1 without an initialised process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def solve_together(session: Session, states: list[SiteState]) -> None:
    """Solve ``states`` from the data of all ranks. Every rank calls this, with the states of equal models.

    Raises:
        PlanMismatchError: the ranks did not see the same sites; else as :meth:`Session.solve`, on every rank.
    """
    statistics: list[list[tuple]] = [[] for _ in range(world())]
    dist.all_gather_object(statistics, [_statistics_of(s) for s in states])
    if any(other != statistics[0] for other in statistics):
        raise PlanMismatchError("the ranks calibrated different sites", where="distributed calibration",
                                remedy="run the same model, in the same modes and order, on every rank.")
    for state in states:
        for observer in state.observers():
            observer.all_reduce()
    answer: list = [None]
    if dist.get_rank() == 0:
        try:
            session.solve(states)
            answer = [[(s.parameters, s.record, [c.record for c in s.scans.values()]) for s in states]]
        except Exception as error:  # the other ranks wait for an answer: they get the error
            answer = [error]
    dist.broadcast_object_list(answer)
    if isinstance(answer[0], Exception):
        raise answer[0]
    for state, (parameters, record, scans) in zip(states, answer[0], strict=True):
        state.parameters, state.record = parameters, record
        for scan, found in zip(state.scans.values(), scans, strict=True):
            scan.record = found
            scan.release()
        state.release()


def _statistics_of(state: SiteState) -> tuple:
    """What is merged for ``state``, in that order."""
    return state.record.key, [(key, sorted(scan.observers)) for key, scan in state.scans.items()]
