"""The cost model at work: each graph by its own rows, results right whatever it chooses, choices in the report."""

import gc
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import torchqx
from tests.conftest import FREE_INTEGERS
from tests.torchqx.small import Attention, batch, calibrated, error
from torchqx import executable, lowering_choice
from torchqx.cost_model import Choice
from torchqx.errors import ConfigError
from torchqx.inductor_kernels.int8_linear.aten import int8_linear_general_aten
from torchqx.inductor_kernels.int8_linear.weight_only import weight_only_linear
from torchqx.session import SESSIONS

ROUNDING = 3e-3
# Integers: 8 a call and as much at any rows; float: 1 a row. So integers pay from 8 rows on.
BY_ROWS = replace(
    FREE_INTEGERS, rows=(1, 2), byte=0.0,
    matmul=dict.fromkeys(FREE_INTEGERS.matmul, (0.0, 0.0)) | {"float32": (1e-3, 2e-3)},
    call=dict.fromkeys(FREE_INTEGERS.call, 0.0) | {"packed": 32.0, "integer": 32.0, "group": 32.0},
)


class Picked(nn.Module):
    """Two linears on the rows that a mask picks: how many is not known before the graph runs."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(63, 100), nn.Linear(100, 63)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x[mask]).relu())


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def targets(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the graphs call that are lowered; in Inductor's place they run as they are."""
    seen: list[Any] = []

    def compile_fx(gm: Any, fakes: list[Any], config_patches: dict[str, Any]) -> Any:
        seen.extend(n.target for n in gm.graph.nodes if n.op == "call_function")
        return gm.forward

    monkeypatch.setattr(executable, "compile_fx", compile_fx)
    return seen


def integer_matmuls(targets: list[Any]) -> int:
    return sum(t is torch.ops.torchqx.int8_linear.default or getattr(t, "__name__", "").startswith("int8_linear")
               for t in targets)


def quantized(**settings: Any) -> nn.Module:
    recipe = torchqx.MinMaxConfig(**{"activation": "token", "error_budget": 1.0, "error_limit": 1.0} | settings)
    return torchqx.quantize(Attention(), recipe, [batch(64)])


def compiled(model: nn.Module, policy: str = "auto") -> Any:
    return torch.compile(model, backend="torchqx", dynamic=False, options={"cost_model": policy})


def test_every_graph_by_its_own_rows(targets: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowering_choice, "machine_rates", lambda: BY_ROWS)
    model = quantized()
    runs = compiled(model)
    prefill, step = batch(64, length=30), batch(64, rows=1, length=1)
    assert error(runs(prefill), model(prefill)) < ROUNDING
    assert integer_matmuls(targets) == 4, "q, k and v are one, then o, up and down"
    targets.clear()
    assert error(runs(step), model(step)) < 0.05
    assert integer_matmuls(targets) == 0
    site = torchqx.explain(model)["up:linear:0"]
    assert list(site.choices) == ["1", "60"]
    assert site.choices["1"].startswith("float: int8 does not pay (0.")
    assert site.choices["60"].startswith("int8, expected gain ")
    assert site.expected_gain > 1
    assert "M=60: int8" in str(torchqx.explain(model))


@pytest.mark.parametrize("policy", ["int8", "float"])
def test_forced(policy: str, targets: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowering_choice, "machine_rates", lambda: pytest.fail("forced, yet it asks"))
    model, x = quantized(), batch(64)
    result = compiled(model, policy)(x)
    assert error(result, model(x)) < (ROUNDING if policy == "int8" else 0.05)
    assert integer_matmuls(targets) == (4 if policy == "int8" else 0)
    assert torchqx.explain(model)["up:linear:0"].choices == {}


@pytest.mark.parametrize("policy", ["int8", "float"])
def test_a_forced_graph_takes_the_choice_for_its_rows_out_of_the_report(
        policy: str, targets: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowering_choice, "machine_rates", lambda: BY_ROWS)
    model = quantized()
    for length in (1, 30):
        compiled(model)(batch(64, length=length))
    torch._dynamo.reset()
    assert list(torchqx.explain(model)["up:linear:0"].choices) == ["2", "60"]
    compiled(model, policy)(batch(64, length=30))
    assert list(torchqx.explain(model)["up:linear:0"].choices) == ["2"]


def test_choices_go_with_the_model(targets: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowering_choice, "machine_rates", lambda: BY_ROWS)
    model = quantized()
    compiled(model)(batch(64, length=30))
    (session,) = SESSIONS.of(model)
    gc.collect()
    known = len(session.choices)
    del model
    torch._dynamo.reset()
    gc.collect()
    assert len(session.choices) < known


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_rows_that_no_one_knows_stay_in_integers(targets: list[Any]) -> None:
    x, mask = torch.randn(9, 63), torch.arange(9) % 3 != 0
    recipe = torchqx.MinMaxConfig(activation="token", quantize_head=True, error_limit=1.0)
    model = torchqx.quantize(Picked(), recipe, [(x, mask)])
    assert error(compiled(model)(x, mask), model(x, mask)) < ROUNDING
    assert integer_matmuls(targets) == 2
    assert torchqx.explain(model)["up:linear:0"].choices == {}


def test_weights_of_one_site_that_run_in_two_ways() -> None:
    slow, fast = Choice("float", 0.5), Choice("int8", 2.0)
    gain, choices = lowering_choice.reported([{1: slow, 60: fast}, {60: slow}, {60: fast}])
    assert gain == 0.5
    assert choices == {"1": str(slow), "60": f"{fast} / {slow}"}


def test_a_forced_float_graph_undoes_rotations(targets: list[Any]) -> None:
    model, x = Attention(), batch(64)
    expected = model(x)
    model = torchqx.quantize(model, torchqx.HadamardConfig(activation="token"), [x])
    assert error(compiled(model, "float")(x), expected) < 0.02
    assert integer_matmuls(targets) == 0


@pytest.mark.parametrize("settings", [
    pytest.param({"weight_granularity": "group", "weight_group_size": 4}, id="weight"),
    pytest.param({"activation": "group", "activation_group_size": 4}, id="activation"),
])
def test_groups_that_do_not_pay_keep_their_weight_in_integers(settings: dict[str, Any], targets: list[Any],
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    other = "float32 weight only" if "weight_group_size" in settings else "float32 weight only grouped"
    slow = replace(FREE_INTEGERS, call=FREE_INTEGERS.call | {"group": 1e9, "float32": 2.0, other: 1e9})
    monkeypatch.setattr(lowering_choice, "machine_rates", lambda: slow)
    monkeypatch.setattr(lowering_choice, "SMALL_COPY", 0)
    model, x = quantized(**settings), batch(64)
    assert error(compiled(model)(x), model(x)) < 0.05
    assert weight_only_linear in targets
    assert int8_linear_general_aten not in targets
    assert torchqx.explain(model)["o:linear:0"].choices["14"].startswith("weight only: int8 does not pay")


def test_a_float_model_keeps_its_own_weights(targets: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowering_choice, "machine_rates", lambda: BY_ROWS)
    monkeypatch.setattr(lowering_choice, "SMALL_COPY", 0)
    model, x = Attention(), batch(64, rows=1, length=1)
    expected = model(x)
    result = calibrated(model, x, lowering="inductor")(x)
    assert torch.equal(result, expected)
    assert integer_matmuls(targets) == 0


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(ConfigError, match="cost_model"):
        compiled(quantized(), "sometimes")(batch(64))
