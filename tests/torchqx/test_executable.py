"""Lowering after Dynamo is done: symbolic sizes, guards that lowering adds, mutation, aliases, and failures."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.scheduler import Scheduler

import torchqx
from tests.torchqx.small import EAGER, RECIPE, Net, batch, error
from torchqx import executable as module
from torchqx.errors import TorchqxWarning

ROUNDING = 3e-3


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def model() -> nn.Module:
    return torchqx.quantize(Net(), RECIPE, [batch()])


def lowering(monkeypatch: pytest.MonkeyPatch, check: Callable[[Any], object]) -> list[Any]:
    """In Inductor's place: ``check`` sees each graph's first symbolic size, then the graph runs as it is."""
    seen: list[Any] = []

    def compile_fx(gm: Any, fakes: list[Any], config_patches: dict[str, Any]) -> Callable[..., Any]:
        size = next(f for f in fakes if isinstance(f, torch.SymInt))
        seen.append(size)
        check(size)
        return lambda *inputs: seen.append("compiled") or gm(*inputs)

    monkeypatch.setattr(module, "compile_fx", compile_fx)
    return seen


def test_one_lowering_serves_all_sizes(model: nn.Module, monkeypatch: pytest.MonkeyPatch):
    seen = lowering(monkeypatch, lambda size: None)
    compiled = torch.compile(model, backend="torchqx", dynamic=True)
    for length in (7, 5, 30):
        x = batch(length=length)
        assert error(compiled(x), model(x)) < ROUNDING
    assert seen[1:] == ["compiled"] * 3


def test_sizes_that_lowering_excluded_run_uncompiled_with_a_warning(model: nn.Module, monkeypatch: pytest.MonkeyPatch):
    seen = lowering(monkeypatch, lambda size: bool(size < 10))
    compiled = torch.compile(model, backend="torchqx", dynamic=True)
    compiled(batch(rows=5))
    assert seen[1:] == ["compiled"]
    x = batch(rows=12)
    with pytest.warns(TorchqxWarning, match="12"):
        assert error(compiled(x), model(x)) < ROUNDING
    assert seen[1:] == ["compiled"]
    compiled(batch(rows=3))
    assert seen[1:] == ["compiled"] * 2


def test_guards_of_the_first_lowering_bind_the_second(monkeypatch: pytest.MonkeyPatch):
    """Lowering may put a number in a size's place for good: later lowerings of the trace see the number."""
    seen = lowering(monkeypatch, lambda size: int(size))
    narrow = torchqx.OutlierSuppressionPlusConfig(activation="token")
    models = [torchqx.quantize(Net(), recipe, [batch()]) for recipe in (RECIPE, narrow)]
    compiled = [torch.compile(m, backend="torchqx", dynamic=True) for m in models]
    for m, c in zip(models, compiled, strict=True):
        assert error(c(batch(rows=5)), m(batch(rows=5))) < ROUNDING
    assert seen.count("compiled") == 2
    for m, c in zip(models, compiled, strict=True):
        with pytest.warns(TorchqxWarning, match="12"):
            assert error(c(batch(rows=12)), m(batch(rows=12))) < ROUNDING
    assert seen.count("compiled") == 2


def test_inductor_with_dynamic_shapes(model: nn.Module):
    compiled = torch.compile(model, backend="torchqx", dynamic=True)
    for rows, length in ((2, 7), (3, 5), (5, 30)):
        x = batch(rows=rows, length=length)
        assert error(compiled(x), model(x)) < ROUNDING


@pytest.mark.parametrize("foreign", [False, True])
def test_layouts_are_checked_where_an_operator_is_not_ours(foreign: bool):
    """Its result may lie in memory otherwise than its fake one: values would be read from wrong places."""
    @torch.library.custom_op("torchqx_tests::doubled", mutates_args=())
    def doubled(x: Tensor) -> Tensor:
        return (x * 2).t().contiguous().t()

    doubled.register_fake(torch.empty_like)

    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.second(torch.tanh(doubled(y) if foreign else 2 * y))

    torch._dynamo.reset()
    x = torch.randn(5, 64)
    model = torchqx.quantize(Between(), RECIPE, [(x,)])
    compiled = torch.compile(model, backend="torchqx")
    if foreign:
        with pytest.raises(AssertionError, match=r"size|stride"):
            compiled(x)
    else:
        assert error(compiled(x), model(x)) < 0.02


def test_floats_are_constants_under_dynamic_shapes():
    class Scaled(Net):
        def __init__(self) -> None:
            super().__init__()
            self.factor = 0.5

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.factor

    model, x = torchqx.quantize(Scaled(), RECIPE, [batch()]), batch()
    compiled = torch.compile(model, backend="torchqx", dynamic=True, options=EAGER)
    for factor in (0.5, 2.0):
        model.factor = factor
        assert error(compiled(x), model(x)) < ROUNDING
    assert {s.kind for s in torchqx.explain(model).sites} >= {"linear", "norm"}


class Cached(nn.Module):
    """Writes into a buffer that the caller owns, and returns it and its own input."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.out = nn.Linear(63, 63), nn.Linear(63, 63)

    def forward(self, x: Tensor, cache: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cache.index_copy_(1, place, self.key(x))
        return x[:, :1] + self.out(torch.relu(cache)), cache, x


@pytest.mark.parametrize("options", [EAGER, {}])
def test_written_inputs_and_outputs_that_are_inputs(options: dict[str, Any]):
    x, place = batch(), torch.arange(7) + 3
    model = torchqx.quantize(Cached(), RECIPE, [(x, torch.zeros(2, 20, 63), place)])
    mine, expected = torch.zeros(2, 20, 63), torch.zeros(2, 20, 63)
    compiled = torch.compile(model, backend="torchqx", options=options)
    for _ in range(2):
        y, cache, same = compiled(x, mine, place)
        assert error(y, model(x, expected, place)[0]) < ROUNDING
    assert cache is mine
    assert same is x
    assert mine[:, :3].abs().sum() == 0
    assert error(mine, expected) < ROUNDING


@pytest.mark.parametrize("how", [{"mode": "reduce-overhead"}, {"mode": "default"},
                                 {"options": {"shape_padding": True}}])
def test_inductors_modes_and_options(model: nn.Module, how: dict[str, Any]):
    assert error(torch.compile(model, backend="torchqx", **how)(batch()), model(batch())) < ROUNDING


def test_a_failed_lowering_leaves_nothing_half_made(model: nn.Module, monkeypatch: pytest.MonkeyPatch):
    real = module.compile_fx

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no compiler")

    compiled = torch.compile(model, backend="torchqx")
    monkeypatch.setattr(module, "compile_fx", broken)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no compiler"):
            compiled(batch())
    monkeypatch.setattr(module, "compile_fx", real)
    assert error(compiled(batch()), model(batch())) < ROUNDING


class Turned(nn.Module):
    """Layers that all read one tensor that is computed before the first, as position embeddings are."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(depth))

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        turn = positions.cos()
        for layer in self.layers:
            x = torch.relu(layer(x)) * turn
        return x


def pairs_tried(monkeypatch: pytest.MonkeyPatch, depth: int) -> int:
    """Of nodes that Inductor's scheduler tries to fuse; it gets no further."""
    tried, can_fuse = [], Scheduler.can_fuse

    def stop(self: Any) -> None:
        raise RuntimeError("scheduled")

    with monkeypatch.context() as patch:
        patch.setattr(Scheduler, "can_fuse", lambda *args, **named: tried.append(1) or can_fuse(*args, **named))
        patch.setattr(Scheduler, "codegen", stop)
        data = torch.randn(5, 32), torch.randn(5, 32)
        compiled = torch.compile(torchqx.quantize(Turned(depth), RECIPE, [data]), backend="torchqx")
        with pytest.raises(Exception, match="scheduled"):
            compiled(*data)
    return len(tried)


def test_layers_far_apart_are_not_tried_in_pairs(monkeypatch: pytest.MonkeyPatch):
    few, many = pairs_tried(monkeypatch, 10), pairs_tried(monkeypatch, 30)
    assert few > 10
    assert many < 5 * few  # all pairs would be 9 times as many
