"""Merging over the ranks of a process group."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from torchqx.observers import (
    ChannelMinMaxObserver,
    HistogramObserver,
    MeanMinMaxObserver,
    MinMaxObserver,
    PercentileObserver,
    RowReservoir,
    TokenQuantileObserver,
)
from torchqx.observers.base import TensorObserver

KINDS = [MinMaxObserver, MeanMinMaxObserver, PercentileObserver, HistogramObserver, ChannelMinMaxObserver,
         TokenQuantileObserver, RowReservoir]


def of_rank(kind: type, rank: int) -> TensorObserver:
    """What ``rank`` of a group makes: its reservoir draws its own keys."""
    return kind(site="s", seed=rank) if kind is RowReservoir else kind(site="s")


def data(rank: int) -> torch.Tensor:
    return torch.randn(30, 5, generator=torch.Generator().manual_seed(rank)) * (rank + 1)


def observe_and_reduce(rank: int, folder: str) -> None:
    torch.set_num_threads(1)  # a forked process has lost the pool
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    states = {}
    for kind in KINDS:
        observer, lopsided = kind(site="s"), kind(site="s")
        observer(data(rank))
        if rank == 1:
            lopsided(data(1))
        observer.all_reduce()
        lopsided.all_reduce()
        states[kind.__name__] = observer.state_dict(), lopsided.state_dict()
    torch.save(states, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def reduced(tmp_path_factory) -> list[dict]:
    folder = str(tmp_path_factory.mktemp("ranks"))
    # Forked: importing torch again in two processes would take longer than all other tests of observers.
    mp.start_processes(observe_and_reduce, (folder,), nprocs=2, start_method="fork")
    return [torch.load(f"{folder}/{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_rank_holds_what_all_saw(reduced, kind):
    both, other, second = of_rank(kind, 0), of_rank(kind, 1), of_rank(kind, 1)
    both(data(0))
    other(data(1))
    both.merge(other)
    second(data(1))
    for ranks in reduced:
        observer, lopsided = ranks[kind.__name__]
        assert all(torch.equal(observer[name], value) for name, value in both.state_dict().items())
        assert all(torch.equal(lopsided[name], value) for name, value in second.state_dict().items())
