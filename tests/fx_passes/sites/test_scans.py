"""Finding scans and convolutions: keys, what they read, who carries them, and scans written by hand."""

from typing import Any

import torch
from torch import Tensor, nn
from torch._higher_order_ops.associative_scan import associative_scan

import torchqx
from tests.capture import capture_one
from tests.state_space_blocks import Mamba, Mamba2, batch, build
from torchqx.fx_passes.sites import GraphSites, find_sites, parameter_nodes
from torchqx.fx_passes.sites.scans import under_views


def sites_of(model: nn.Module, *args: Any) -> GraphSites:
    torch._dynamo.reset()
    gm, inputs = capture_one(model, *args)
    return find_sites(gm, parameter_nodes(gm, inputs))


def test_prefill_and_decode_have_the_same_keys():
    for kind in (Mamba, Mamba2):
        model, x = build(kind), batch(0)
        states = [block.states(2) for block in model.blocks]
        prefill, decode = sites_of(model, x), sites_of(model, x[:, :1], states)
        keys = ["blocks.0:conv:0", "blocks.0:scan:0", "blocks.1:conv:0", "blocks.1:scan:0"]
        assert [s.key for s in prefill.scans] == [s.key for s in decode.scans] == keys
        for one, other in zip(prefill.scans, decode.scans, strict=True):
            assert one.tensors.keys() == other.tensors.keys()
            assert one.constants.keys() == other.constants.keys()


def test_what_a_scan_reads():
    sites = sites_of(build(), batch(0))
    conv, scan = sites.scans[:2]
    assert set(scan.tensors) == {"x", "dt", "B", "C", "z"}
    assert set(scan.constants) == {"A", "D", "bias"}
    assert (set(conv.tensors), set(conv.constants)) == ({"x"}, {"weight"})
    assert conv.carrier.path == scan.carrier.path == "blocks.0.in_proj"
    by_path = {site.ops[0].path: site for site in sites.linears}
    assert under_views(by_path["blocks.0.x_proj"].x) is under_views(scan.tensors["x"])


def test_readers_of_a_scans_result():
    for kind in (Mamba, Mamba2):
        sites = sites_of(build(kind), batch(0))
        readers = {site.ops[0].path: site.scan.key for site in sites.linears if site.scan is not None}
        assert readers == {f"blocks.{i}.out_proj": f"blocks.{i}:scan:0" for i in range(2)}


def test_without_a_matmul_of_its_own_nothing_carries_it():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 4))

        def forward(self, x: Tensor) -> Tensor:
            return torchqx.causal_conv1d(x, self.weight)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = Bare(), nn.Linear(9, 9)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.conv(x))

    (site,) = sites_of(Outer(), torch.randn(2, 5, 9)).scans
    assert (site.key, site.carrier) == ("conv:conv:0", None)


def test_scans_written_by_hand_are_told():
    class Hand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            def combine(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
                return left[0] * right[0], right[0] * left[1] + right[1]

            decay = torch.sigmoid(self.proj(x))
            return associative_scan(combine, (decay, x), dim=1, combine_mode="generic")[1]

    sites = sites_of(Hand().requires_grad_(False), torch.randn(2, 6, 4))
    (told,) = sites.unsupported
    assert told.kind == "scan"
    assert "torchqx.selective_scan" in told.reason
