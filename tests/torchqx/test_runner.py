"""What a runner holds, for how long, and what a call through it costs."""

import gc
import time
import timeit
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchqx
from tests.torchqx.small import EAGER, RECIPE, Net, batch, calibrated, error, states
from torchqx.runner import Binding, GraphRunner
from torchqx.session import SESSIONS
from torchqx.watched import Watched, version_of


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def runners(monkeypatch: pytest.MonkeyPatch) -> list[GraphRunner]:
    """The runners that the test makes."""
    made: list[GraphRunner] = []
    init = GraphRunner.__init__

    def remember(self: GraphRunner, *args: Any) -> None:
        init(self, *args)
        made.append(self)

    monkeypatch.setattr(GraphRunner, "__init__", remember)
    return made


def test_a_model_that_is_gone_takes_all_of_its_own_along(runners: list[GraphRunner]):
    kept, x = Net(0), batch()
    compiled = calibrated(kept, x)
    compiled(x)
    gone = Net(1)
    other = calibrated(gone, x)
    other(x)
    session = SESSIONS.of(gone)[0]
    assert len(runners) == 1
    assert len(runners[0].bindings) == 2
    watch = [weakref.ref(s) for s in states(gone)] + [weakref.ref(p) for p in gone.parameters()]
    watch += [weakref.ref(s.quantized(w)) for s in states(gone) for w in s.weights()]
    watch += [weakref.ref(t) for b in runners[0].bindings.values() for t in b.inputs if t is not None]
    gc.collect()  # the session is the process's: what earlier users of this recipe left must not count
    alive = len(session.derived)
    del gone, other
    gc.collect()
    assert len(runners[0].bindings) == 1
    assert len(session.derived) == alive - 4
    assert sum(w() is not None for w in watch) == sum(t is not None for t in runners[0].bindings.popitem()[1].inputs)
    assert len(session.states) == 4
    assert error(compiled(x), kept(x)) < 0.01


def test_weights_that_change_often_leave_nothing_behind(runners: list[GraphRunner]):
    model, x = Net(), batch()
    compiled = calibrated(model, x)
    compiled(x)
    sizes = set()
    for _ in range(4):
        model.layers[0].up.weight.mul_(1.01)
        model.layers[0].down.bias.add_(0.01)
        model.layers[1].up.weight.data = model.layers[1].up.weight.data.clone()
        compiled(x)
        gc.collect()
        runner = runners[0]
        made = sum(map(len, SESSIONS.of(model)[0].derived.values()))
        sizes.add((len(runner.bindings), len(runner.executables), made))
    assert len(sizes) == 1


def test_a_converted_model_is_freed(runners: list[GraphRunner]):
    model, x = torchqx.quantize(Net(), RECIPE, [batch()]), batch()
    compiled = torch.compile(model, backend="torchqx", options=EAGER)
    compiled(x)
    watch = [weakref.ref(p.scale if isinstance(p, torchqx.QuantizedWeight) else p) for p in model.parameters()]
    del model, compiled
    gc.collect()
    assert all(w() is None for w in watch)
    assert not runners[-1].bindings


def test_the_report_knows_the_other_sites_of_every_instance():
    a, b, x = Net(0), Net(1), batch()
    calibrated(a, x)
    calibrated(b, x)
    found = [[s.key for s in torchqx.explain(m).sites] for m in (a, b)]
    assert found[0] == found[1]
    assert "layers.1.norm:norm:0" in found[1]


def test_a_graph_without_parameters():
    x = batch()
    for options in (EAGER, {}):
        compiled = torch.compile(lambda t: (t * 2 + 1).sin(), backend="torchqx", options=options)
        torch.testing.assert_close(compiled(x), (x * 2 + 1).sin())


def test_a_bad_calibration_batch_is_an_error_once():
    model, x = Net(), batch()
    compiled = torch.compile(model, backend="torchqx", options=EAGER | {"recipe": RECIPE, "calibration_steps": 1})
    with pytest.raises(torchqx.errors.NonFiniteError, match=r"layers\.0\.up"):
        compiled(x * float("nan"))
    assert error(compiled(x), model(x)) == 0.0
    assert 0 < error(compiled(x), model(x)) < 0.01


def test_sequential_calibration_under_the_backend_forgets_its_batches():
    recipe = torchqx.OutlierSuppressionPlusConfig(calibration="sequential")
    model, other, x = Net(), Net(1), batch()
    compiled, second = (torch.compile(m, backend="torchqx", options=EAGER | {"recipe": recipe, "calibration_steps": 2})
                        for m in (model, other))
    for step in range(4):
        for c, m in ((compiled, model), (second, other)):
            assert error(c(x), m(x)) < (0.01 if step > 1 else 1e-9)
    assert SESSIONS.of(model)[0].batches == []
    parallel = Net()
    calibrated(parallel, x)
    after = [next(s for s in states(m) if "layers.1.down" in s.record.key) for m in (parallel, model)]
    assert after[0].record.loss != after[1].record.loss


def test_what_a_watched_tensor_shows():
    args = [nn.Parameter(torch.ones(4)), torch.ones(3)]
    gone: list[int] = []
    watched = Watched(args, [0, 1], lambda: gone.append(1))
    assert watched.unchanged(args)
    args[0].data = args[0].data[1:]
    assert not watched.unchanged(args)
    watched = Watched(args, [0, 1], lambda: gone.append(1))
    args[1].add_(1)
    assert not watched.unchanged(args)
    assert not watched.unchanged([args[0], torch.ones(3)])
    with torch.inference_mode():
        assert not watched.unchanged([args[0], torch.ones(3)])
    args.pop()
    assert gone == [1]


def test_versions_compare_equal_until_something_changes():
    tensor = torch.ones(3)
    before = version_of(tensor)
    assert version_of(tensor) == before
    tensor.zero_()
    assert version_of(tensor) != before


@pytest.mark.parametrize("inference", [False, True])
def test_a_call_costs_little_beside_the_graph(inference: bool):
    """30 layers of 7 weights: what a decoder of 135 million parameters has."""
    class Nothing:
        def __init__(self) -> None:
            self.sources = list(range(211))

        def __call__(self, args: list[Tensor], inputs: list[Any]) -> None:
            assert len(inputs) == 211

    with torch.inference_mode(inference):
        args = [nn.Parameter(torch.ones(2, 2)) for _ in range(210)] + [torch.ones(1)]
    binding = Binding(Watched(args, range(210), lambda: None), Nothing(), [None] * 211)
    seconds = min(timeit.repeat(lambda: binding.serves(args) and binding(args), number=50, repeat=20,
                                timer=time.thread_time)) / 50  # other processes do not count
    assert seconds < 300e-6  # about 60 on an idle core
