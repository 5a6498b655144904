"""One traced graph serves many weights: each model, layer and parameter gives its own output, always."""

import copy
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import torchqx
from tests.torchqx.small import (
    EAGER,
    LIVE,
    RECIPE,
    STEPS,
    Attention,
    Net,
    batch,
    calibrated,
    calls,
    error,
    live,
    states,
)

NOISE = 0.01
"""Error of 8 bits on the small models; a wrong weight gives 0.5 and more."""
OLD_RANGES = 0.05
"""The same where a weight changed, while the next site keeps the range that its activation had before."""


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def settled(compiled: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor) -> None:
    """The calls that calibrate again are right, and so is the one after them."""
    worst = max(error(compiled(x), model(x)) for _ in range(STEPS))
    assert worst < NOISE
    quantized = error(compiled(x), model(x))
    assert 0 < quantized < OLD_RANGES


def test_two_instances_of_one_class_share_a_graph_and_nothing_else():
    a, b, x = Net(0), Net(1), batch()
    first, second = live(a), live(b)
    errors = [(error(first(x), a(x)), error(second(x), b(x))) for _ in range(STEPS + 3)]
    assert errors[:STEPS] == [(0.0, 0.0)] * STEPS
    assert all(0 < e < NOISE for pair in errors[STEPS:] for e in pair)
    assert calls(a) == calls(b) == [STEPS] * 4
    assert {s.key for s in torchqx.explain(a).sites} == {s.key for s in torchqx.explain(b).sites}


def test_layers_compiled_one_by_one_have_their_own_calibration_and_full_names():
    model, x = Net(), batch()
    expected = model(x)
    whole = {s.key: s.kind for s in torchqx.explain(_compiled_whole(Net(), x)).sites if s.kind != "residual"}
    for layer in model.layers:
        layer.compile(backend="torchqx", options=LIVE)
    errors = [error(model(x), expected) for _ in range(STEPS + 2)]
    assert errors[:STEPS] == [0.0] * STEPS
    assert all(0 < e < NOISE for e in errors[STEPS:])
    assert calls(model) == [STEPS] * 4
    assert not torch.equal(states(model)[0].channels.channel_bounds()[0], states(model)[2].channels.channel_bounds()[0])
    report = torchqx.explain(model)
    assert {s.key: s.kind for s in report.sites if s.kind != "residual"} == whole
    assert report["layers.1.down:linear:0"].weights == ["layers.1.down.weight"]


def _compiled_whole(model: nn.Module, x: Tensor) -> nn.Module:
    calibrated(model, x)
    return model


def test_a_replaced_parameter_recalibrates_its_site_alone():
    model, x = Net(), batch()
    compiled = calibrated(model, x)
    compiled(x)
    kept = [s for s in states(model) if "layers.0.up" not in s.record.key]
    model.layers[0].up.weight = nn.Parameter(model.layers[0].up.weight.flip(0).clone())
    settled(compiled, model, x)
    assert [s for s in states(model) if "layers.0.up" not in s.record.key] == kept
    assert calls(model) == [STEPS] * 4


def test_a_parameter_of_a_group_replaced_after_it_was_solved():
    model, x = Attention(), batch(64)
    compiled = calibrated(model, x)
    model.k.weight = nn.Parameter(model.k.weight.flip(0).clone())
    settled(compiled, model, x)
    report = torchqx.explain(model)
    assert report["k:linear:0"].operations == ["k:linear:0"]
    assert report[":linear:0"].operations == ["q:linear:0", "v:linear:0"]


def test_a_parameter_of_a_group_replaced_while_it_calibrates_starts_the_group_again():
    model, x = Attention(), batch(64)
    compiled = live(model)
    compiled(x)
    model.q.weight = nn.Parameter(model.q.weight.flip(0).clone())
    assert [error(compiled(x), model(x)) for _ in range(STEPS)] == [0.0] * STEPS
    assert 0 < error(compiled(x), model(x)) < NOISE
    assert torchqx.explain(model)[":linear:0"].operations == ["q:linear:0", "k:linear:0", "v:linear:0"]


def test_in_place_writes_are_quantized_again_without_calibration():
    model, x = Net(), batch()
    compiled = calibrated(model, x)
    before = compiled(x)
    model.layers[0].up.weight.mul_(0.5)
    model.layers[1].down.bias.add_(5)
    model.layers[1].norm.bias.add_(0.1)
    assert error(compiled(x), model(x)) < NOISE
    assert error(compiled(x), before) > 0.5
    assert calls(model) == [STEPS] * 4


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_loaded_into_the_compiled_model(assign: bool):
    model, other, x = Net(), Net(5), batch()
    compiled = calibrated(model, x)
    compiled(x)
    model.load_state_dict(other.state_dict(), assign=assign)
    for _ in range(STEPS + 1):
        assert error(compiled(x), other(x)) < OLD_RANGES


def test_new_storage_at_an_old_address_is_noticed():
    model, x = Net(), batch()
    compiled = calibrated(model, x)
    compiled(x)
    weight = model.layers[0].up.weight
    address = weight.data_ptr()
    for _ in range(50):
        weight.data = torch.zeros_like(weight)
        weight.data = torch.full_like(weight, 0.01)
        if weight.data_ptr() == address:
            break
    assert error(compiled(x), model(x)) < NOISE


def test_a_model_moved_to_another_dtype_keeps_its_plan():
    model, x = Net(), batch()
    compiled = calibrated(model, x)
    compiled(x)
    model.bfloat16()
    y = compiled(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert 0 < error(y, model(x.bfloat16())) < NOISE
    assert calls(model) == [STEPS] * 4


def test_a_converted_model_moves_and_loads_while_compiled():
    x = batch()
    model, other = (torchqx.quantize(Net(seed), RECIPE, [x]) for seed in (0, 1))
    compiled = torch.compile(model, backend="torchqx", options=EAGER)
    assert error(compiled(x), model(x)) < 2e-3
    model.load_state_dict(other.state_dict())
    assert torch.equal(model(x), other(x))
    assert error(compiled(x), other(x)) < 2e-3
    model.bfloat16()  # swaps the tensors, which torch refuses where weak references point to them
    assert error(compiled(x.bfloat16()), model(x.bfloat16())) < NOISE


def test_copies_of_a_model_are_models_of_their_own():
    model, x = torchqx.quantize(Net(), RECIPE, [batch()]), batch()
    clone = copy.deepcopy(model)
    with torch.no_grad():
        clone.layers[0].down.bias.add_(3)
    compiled = [torch.compile(m, backend="torchqx", options=EAGER) for m in (model, clone)]
    for _ in range(2):
        assert all(error(c(x), m(x)) < 2e-3 for c, m in zip(compiled, (model, clone), strict=True))
    assert torchqx.explain(clone).to_json() == torchqx.explain(model).to_json()


def test_data_writes_show_after_refresh():
    model, x = Net(), batch()
    compiled = calibrated(model, x)
    stale = compiled(x)
    model.layers[0].up.weight.data.neg_()
    model.layers[0].up.bias.data.neg_()
    assert torch.equal(compiled(x), stale)
    assert torchqx.refresh(compiled) is compiled
    assert error(compiled(x), model(x)) < OLD_RANGES < 0.2 < error(stale, model(x))
    assert calls(model) == [STEPS] * 4


def test_refresh_reaches_tensors_of_inference_mode_and_storage_tensors():
    x = batch()
    with torch.inference_mode():
        model = Net()
        compiled = calibrated(model, x)
        compiled(x)
        model.layers[0].down.weight.mul_(-1)
        torchqx.refresh(model)
        assert error(compiled(x), model(x)) < OLD_RANGES
    converted = torchqx.quantize(Net(), RECIPE, [x])
    compiled = torch.compile(converted, backend="torchqx", options=EAGER)
    compiled(x)
    converted.layers[0].down.weight.data.qdata.data.neg_()
    torchqx.refresh(converted)
    assert error(compiled(x), converted(x)) < 2e-3


def test_one_linear_called_twice():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.last = nn.Linear(63, 63), nn.Linear(63, 63)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.last(torch.relu(self.shared(torch.relu(self.shared(x)) * 3)))

    model, x = Twice(), batch()
    compiled = calibrated(model, x)
    assert 0 < error(compiled(x), model(x)) < NOISE
    assert 0 < error(torchqx.quantize(copy.deepcopy(model), RECIPE, [x])(x), model(x)) < NOISE
    assert torchqx.explain(model)["shared:linear:0"].status == "quantized"


def test_graph_breaks_change_neither_results_nor_keys():
    x = batch(64)
    models = [nn.Sequential(Attention(breaks), Attention(breaks)) for breaks in (False, True)]
    models[1].load_state_dict(models[0].state_dict())
    reports = []
    for model in models:
        compiled = calibrated(model, x)
        assert 0 < error(compiled(x), model(x)) < NOISE
        reports.append(torchqx.explain(model))
        converted = torchqx.quantize(copy.deepcopy(model), RECIPE, [x])
        assert [s.key for s in torchqx.explain(converted).sites] == [s.key for s in reports[-1].sites]
    whole, broken = ({o: s.status for s in r.sites for o in s.operations} for r in reports)
    assert whole.keys() == broken.keys()
    assert len(whole) == 12
    assert set(broken.values()) == {"quantized"}
    kinds = [{s.key for s in r.sites if s.kind in ("norm", "attention")} for r in reports]
    assert kinds[0] == kinds[1]
    assert len(kinds[0]) == 4


def run_together(*jobs: Callable[[], None]) -> None:
    failures: list[BaseException] = []

    def guarded(job: Callable[[], None]) -> None:
        try:
            with torch.no_grad():
                job()
        except BaseException as failure:  # handed to the test's own thread
            failures.append(failure)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_four_threads_call_one_model():
    model, x = Net(), batch()
    compiled, expected, errors = live(model), model(x), []
    run_together(*[lambda: errors.extend(error(compiled(x), expected) for _ in range(6))] * 4)
    assert sorted(errors)[:STEPS] == [0.0] * STEPS
    assert all(0 < e < NOISE for e in sorted(errors)[STEPS:])
    assert calls(model) == [STEPS] * 4


def test_two_threads_calibrate_two_models_at_once():
    models, x = [Net(0), Net(1)], batch()
    errors: list[list[float]] = [[], []]

    def job(i: int) -> None:
        compiled, expected = live(models[i]), models[i](x)
        errors[i] += [error(compiled(x), expected) for _ in range(6)]

    run_together(lambda: job(0), lambda: job(1))
    for found in errors:
        assert found[:STEPS] == [0.0] * STEPS
        assert all(0 < e < NOISE for e in found[STEPS:])
