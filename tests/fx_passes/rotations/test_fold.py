"""Small graphs made by hand: what folds, what must stay, and that both are right."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests.fx_passes.rotations.rotate import Rotated, rotate, with_signs
from torchqx.fx_passes.prove import TOLERANCE
from torchqx.fx_passes.rotations.norms import bare_layer_norm
from torchqx.rotations import choose

K = 24


class Block(nn.Module):
    """``code(x, norm, up, down)`` on a pre-norm feed-forward block."""

    def __init__(self, code: Callable[..., Any], k: int = K, norm: type[nn.Module] = nn.LayerNorm,
                 depth: int = 3) -> None:
        super().__init__()
        self.code = code
        self.norms = nn.ModuleList([norm(k) for _ in range(depth)])
        self.ups = nn.ModuleList([nn.Linear(k, 2 * k) for _ in range(depth)])
        self.downs = nn.ModuleList([nn.Linear(2 * k, k) for _ in range(depth)])
        self.last = norm(k)
        for name, parameter in self.named_parameters():
            if "norm" in name or "last" in name:
                nn.init.uniform_(parameter, *((-0.2, 0.2) if name.endswith("bias") else (0.5, 1.5)))

    def forward(self, x: Tensor, *more: Any) -> Any:
        for norm, up, down in zip(self.norms, self.ups, self.downs, strict=True):
            x = self.code(x, norm, up, down)
        return self.last(x)


def plain(x: Tensor, norm: nn.Module, up: nn.Module, down: nn.Module) -> Tensor:
    return x + down(F.relu(up(norm(x))))


def in_place(x: Tensor, norm: nn.Module, up: nn.Module, down: nn.Module) -> Tensor:
    branch = down(F.relu(up(norm(x))))
    branch += x
    return branch


def rewritten_stream(x: Tensor, norm: nn.Module, up: nn.Module, down: nn.Module) -> Tensor:
    """The stream is written into after a view of it was taken, which is read later."""
    stream = x * 1.5
    view = stream.view(-1)
    stream += down(F.relu(up(norm(stream))))
    return stream + view.view(x.shape)


def other_reader(x: Tensor, norm: nn.Module, up: nn.Module, down: nn.Module) -> Tensor:
    return x + down(F.relu(up(norm(x)))) * x.sigmoid()


def gated_by_row(x: Tensor, norm: nn.Module, up: nn.Module, down: nn.Module) -> Tensor:
    scale = F.relu(up(norm(x))).mean(-1, keepdim=True)
    return 0.5 * x + down(F.relu(up(norm(x)))) * scale - x / 4


def by_tokens(x: Tensor, norm: nn.Module, up: nn.Module, down: nn.Module) -> Tensor:
    """Moved, mixed and cut along other dimensions than the last."""
    mixed = torch.softmax(x @ x.transpose(1, 2), -1) @ down(F.relu(up(norm(x).flip(1))))
    rolled = torch.cat([mixed[:, 1:], mixed[:, :1]], 1).transpose(0, 1).contiguous().transpose(0, 1)
    return x + rolled + x.mean(1, keepdim=True).expand(-1, x.shape[1], -1)


def correct(graph: Rotated) -> None:
    assert max(graph.errors()) < TOLERANCE
    assert graph.proof < TOLERANCE


def streamed(graph: Rotated) -> int:
    """How many matmuls read a folded rotation."""
    return sum(choice.folded for choice in graph.plan.values())


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize(("code", "folded"), [
    (plain, 3), (in_place, 3), (rewritten_stream, 0), (other_reader, 0), (gated_by_row, 6), (by_tokens, 0)])
def test_streams(code: Callable[..., Any], folded: int, norm: type[nn.Module]) -> None:
    graph = rotate(Block(code, norm=norm), torch.randn(2, 5, K), heads=True, rotation=with_signs)
    correct(graph)
    assert streamed(graph) == folded
    down = [c for op, c in graph.plan.items() if "downs" in op.path]
    assert all((c.output is not None) == bool(folded) for c in down[:-1])


def test_one_block_is_not_worth_it() -> None:
    """Its stream would be rotated where it begins and where it ends, to save one rotation."""
    graph = rotate(Block(plain, depth=1), torch.randn(2, 5, K), heads=True)
    correct(graph)
    assert streamed(graph) == 0


def test_a_norm_with_zeros_in_its_weight_is_not_absorbed() -> None:
    model = Block(plain)
    with torch.no_grad():
        model.norms[1].weight[3] = 0
    graph = rotate(model, torch.randn(2, 5, K), heads=True)
    correct(graph)
    assert {op.path: c.norm is not None for op, c in graph.plan.items() if "ups" in op.path} == {
        "ups.0": streamed(graph) > 0, "ups.1": False, "ups.2": streamed(graph) > 0}


def test_a_weight_read_at_two_places_has_one_rotation() -> None:
    model = Block(plain)
    model.ups[1], model.downs[2] = model.ups[0], model.downs[0]
    graph = rotate(model, torch.randn(2, 5, K), heads=True)
    correct(graph)
    shared = [c for op, c in graph.plan.items() if op.weight in graph.sites.shared_weights]
    assert shared
    assert all(c.output is None and c.norm is None for c in shared)


class Text(nn.Module):
    """``begin(tokens)``, blocks, and a linear head."""

    def __init__(self, code: Callable[..., Any] = plain, norm: type[nn.Module] = nn.LayerNorm, depth: int = 1,
                 max_norm: float | None = None) -> None:
        super().__init__()
        self.table = nn.Embedding(11, K, max_norm=max_norm)
        self.places = nn.Parameter(torch.randn(1, 9, K))
        self.start = nn.Parameter(torch.randn(1, 1, K))
        self.blocks = Block(code, norm=norm, depth=depth)
        self.head = nn.Linear(K, 7)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens) * K**0.5
        x = torch.cat([self.start.expand(len(tokens), -1, -1), x], 1)
        return self.head(self.blocks(x + self.places[:, : x.shape[1]])[:, 1:])


TOKENS = torch.randint(11, (2, 6), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_a_stream_from_embeddings_to_a_head_costs_nothing(norm: type[nn.Module]) -> None:
    """Only the wide rows are rotated as the graph runs; even one block is worth it then."""
    graph = rotate(Text(norm=norm), TOKENS, rotation=with_signs)
    correct(graph)
    assert [node.args[0].name for node in graph.left()] == ["relu"]
    assert [str(f.weight).rpartition("modules_")[2] for f in graph.floats] == [
        "table_parameters_weight_", "l_self_parameters_start_", "l_self_parameters_places_", "head_parameters_weight_"]
    assert all(f.rotation == with_signs(K) for f in graph.floats)


def test_a_norm_is_taken_apart_only_for_a_head_that_reads_it_rotated() -> None:
    graph = rotate(Text(other_reader, depth=2), TOKENS)
    correct(graph)
    assert not graph.floats
    assert not any(n.target is bare_layer_norm for n in graph.folded.graph.nodes)


def test_a_table_that_its_look_up_scales_down_is_not_rotated() -> None:
    graph = rotate(Text(max_norm=1.0, depth=3), TOKENS)
    correct(graph)
    assert not any("table" in str(f.weight) for f in graph.floats)


class Patches(nn.Module):
    """Patches by a convolution, on the way to blocks."""

    def __init__(self, permute: bool) -> None:
        super().__init__()
        self.patches, self.blocks, self.permute = nn.Conv2d(3, K, 2, 2), Block(plain), permute

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2)
        return self.blocks(x.permute(0, 2, 1) if self.permute else x.transpose(-1, 1)).mean((0, 1))


@pytest.mark.parametrize("permute", [False, True])
def test_a_convolution_writes_rotated_patches(permute: bool) -> None:
    graph = rotate(Patches(permute), torch.randn(2, 3, 4, 6), heads=True)
    correct(graph)
    assert graph.choice("patches").output == choose(K)
    assert len(graph.left()) == 3 + 1  # before each down, and the stream back where it ends


def test_matmul_into_matmul() -> None:
    """What one writes and the next reads may be in any coordinates: nothing is left."""
    layers = nn.Sequential(nn.Linear(K, K), nn.Linear(K, K), nn.Linear(K, K))
    graph = rotate(layers, torch.randn(7, K), heads=True)
    correct(graph)
    assert [n.args[0].op for n in graph.left()] == ["placeholder"]


def test_consumers_share_one_rotation() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(K, 3), nn.Linear(K, 5)

        def forward(self, x: Tensor) -> Any:
            y = x.tanh()
            return self.a(y), self.b(y.view(-1, K))

    graph = rotate(Two(), torch.randn(2, 4, K), heads=True, rotation=with_signs)
    correct(graph)
    assert len(graph.left()) <= 2


@settings(max_examples=6, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(block=st.sampled_from([2, 4, 12, 20]), count=st.integers(1, 3), depth=st.integers(3, 4), seeded=st.booleans(),
       rms=st.booleans(), rows=st.integers(4, 9))
def test_any_size(block: int, count: int, depth: int, seeded: bool, rms: bool, rows: int) -> None:
    torch._dynamo.reset()
    k = block * count
    model = Block(plain, k, nn.RMSNorm if rms else nn.LayerNorm, depth)
    graph = rotate(model, torch.randn(2, rows, k), heads=True, rotation=with_signs if seeded else choose)
    correct(graph)
    assert streamed(graph) == depth
