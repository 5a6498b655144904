"""Two ranks calibrate one model on different data and end with one solution: that of all the data."""

from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import torchqx
from tests.state_space_blocks import RANK, STATES, Mamba, batch, build
from torchqx.errors import PlanMismatchError
from torchqx.storage import QuantizedWeight
from torchqx.workflow import SESSION

RECIPE = torchqx.MinMaxConfig(activation="static", sample_rows=64)
SCANS = torchqx.QuambaConfig(alpha=None)


def make_model() -> torch.nn.Sequential:
    torch.manual_seed(0)
    layers = torch.nn.Linear(16, 24), torch.nn.GELU(), torch.nn.Linear(24, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)
    return torch.nn.Sequential(*layers).eval()


def batches() -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.randn(32, 16, generator=random) * (1 + i) for i in range(2)]


def parameters_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {f"{name}.{part}": getattr(p, part) for name, p in model.named_parameters()
            if isinstance(p, QuantizedWeight) for part in ("qdata", "scale", "per_tensor_scale")}


class Gated(Mamba):
    """The scan is multiplied by z, or it is left out."""

    def forward(self, x: torch.Tensor, gated: bool, scanned: bool) -> torch.Tensor:
        u, z = self.in_proj(x).transpose(1, 2).chunk(2, 1)
        dt, b, c = self.x_proj(u.transpose(1, 2)).split([RANK, STATES, STATES], -1)
        dt = self.dt_proj.weight @ dt.transpose(1, 2)
        if scanned:
            u = torchqx.selective_scan(u, dt, -self.A_log.exp(), b.transpose(1, 2), c.transpose(1, 2), self.D,
                                       z if gated else None, self.dt_proj.bias, delta_softplus=True)
        return self.out_proj(u.transpose(1, 2))


def calibrate_linears(rank: int) -> dict[str, torch.Tensor]:
    model = torchqx.prepare(make_model(), RECIPE)
    model(batches()[rank])
    keys = torch.cat([state.rows.keys for state in model.__dict__[SESSION].states_in(model)])
    torchqx.convert(model)
    return parameters_of(model) | {"keys": keys}


def calibrate_scans(rank: int) -> dict[str, Any]:
    model = torchqx.prepare(build(), SCANS)
    model(batch(rank))
    torchqx.convert(model)
    return {s.key: s.scales for s in torchqx.explain(model).sites if s.scales}


def calibrate_different_scans(rank: int) -> list[str]:
    """What the ranks are told, of which first one saw a gate, then one the scan."""
    told = []
    for gated, scanned in ((rank == 0, True), (False, rank == 0)):
        model = torchqx.prepare(Gated().eval().requires_grad_(False), SCANS)
        model(batch(rank), gated, scanned)
        try:
            torchqx.convert(model)
        except PlanMismatchError as error:
            told.append(str(error))
    return told


CASES = {"linears": calibrate_linears, "scans": calibrate_scans, "different_scans": calibrate_different_scans}


def run_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2,
                            timeout=timedelta(seconds=30))
    try:
        torch.save({name: case(rank) for name, case in CASES.items()}, f"{folder}/rank{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each case gave on each rank; one start of the processes costs as much as all cases together."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, (str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def test_ranks_agree_on_the_scales_of_scans(ranks: list[dict[str, Any]]) -> None:
    together = torchqx.quantize(build(), SCANS, [(batch(seed),) for seed in range(2)])
    scales = {s.key: s.scales for s in torchqx.explain(together).sites if s.scales}
    assert len(scales) == 4
    assert [rank["scans"] for rank in ranks] == [scales] * 2


def test_ranks_that_saw_different_scans_are_told(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert len(rank["different_scans"]) == 2
        assert all("different sites" in told for told in rank["different_scans"])


def test_ranks_agree_with_one_process_that_saw_all_data(ranks: list[dict[str, Any]]) -> None:
    together = parameters_of(torchqx.quantize(make_model(), RECIPE, batches()))
    first, second = (rank["linears"] for rank in ranks)
    assert together
    for name, value in together.items():
        assert torch.equal(first[name], value), name
        assert torch.equal(second[name], value), name
    assert not set(first["keys"].flatten().tolist()) & set(second["keys"].flatten().tolist())
