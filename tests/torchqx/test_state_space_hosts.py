"""transformers' state-space functions in Dynamo's graphs: one operator per call, results those of eager mode."""

import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from transformers import DynamicCache
from transformers.models.mamba import modeling_mamba

import torchqx
from tests.state_space_models import MAMBA1, MODELS, prompt
from torchqx import state_space, state_space_hosts
from torchqx.errors import TorchqxWarning
from torchqx.fx_passes.sites.scans import HOST_FUNCTIONS
from torchqx.testing import fake_cuda


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    with torch.no_grad():
        yield


class Graphs:
    """A backend that runs graphs as they are and counts our operators in each."""

    takes_state_space_operators = True

    def __init__(self) -> None:
        self.ops: list[Counter[str]] = []

    def __call__(self, gm: GraphModule, _: Any) -> Callable[..., Any]:
        names = (str(node.target) for node in gm.graph.nodes)
        self.ops.append(Counter(name.split(".")[1] for name in names if name.startswith("torchqx.")))
        return gm.forward


def generate(model: Any, length: int) -> Any:
    return model.generate(**prompt(2, length), max_new_tokens=2, do_sample=False, output_logits=True,
                          return_dict_in_generate=True, eos_token_id=None, pad_token_id=0)


@pytest.mark.parametrize("name", MODELS)
def test_generate_is_that_of_eager_mode(name: str):
    model, graphs, lengths = MODELS[name](), Graphs(), (7, 21)
    expected = [generate(model, length) for length in lengths]
    model.compile(backend=graphs, dynamic=True)
    for length, wanted in zip(lengths, expected, strict=True):
        seen = len(graphs.ops)
        found = generate(model, length)
        assert torch.equal(found.sequences, wanted.sequences)
        for y, e in zip(found.logits, wanted.logits, strict=True):
            torch.testing.assert_close(y, e, rtol=1e-4, atol=2e-5)
        assert length == lengths[0] or len(graphs.ops) == seen  # no new graph for another length
    scan = "selective_scan" if name in MAMBA1 else "chunk_scan"
    prefill, decode = graphs.ops[0], graphs.ops[-1]
    assert set(prefill) == {scan, "causal_conv1d"}
    assert set(decode) == {"state_update", "causal_conv1d_update"}
    heads = getattr(model.config, "n_mamba_heads", 1) if name == "zamba" else 1
    mixers = sum(hasattr(module, "A_log") for module in model.modules())
    assert prefill[scan] == decode["state_update"] == heads * mixers
    assert prefill["causal_conv1d"] == decode["causal_conv1d_update"] == mixers


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_chunked_prefill(name: str):
    """A second piece of the prompt starts from the states of the first where the model itself does so."""
    model, graphs = MODELS[name](), Graphs()
    compiled = torch.compile(model, backend=graphs)
    tokens = prompt(2, 20)["input_ids"]

    def run(call: Callable[..., Any]) -> list[Tensor]:
        cache = DynamicCache(config=model.config)
        return [call(input_ids=part, cache_params=cache, use_cache=True).logits
                for part in (tokens[:, :9], tokens[:, 9:18], tokens[:, 18:19], tokens[:, 19:])]

    for y, e in zip(run(compiled), run(model), strict=True):
        torch.testing.assert_close(y, e, rtol=1e-4, atol=2e-5)
    assert all(graphs.ops)


def test_half_precision_keeps_types():
    model = MODELS["mamba"]().to(torch.bfloat16)
    expected = generate(model, 9)
    model.compile(backend=Graphs())
    found = generate(model, 9)
    assert [y.dtype for y in found.logits] == [e.dtype for e in expected.logits]
    torch.testing.assert_close(found.logits[0], expected.logits[0], rtol=0.05, atol=0.05)


def conv(x: Tensor, weight: Tensor, activation: str | None) -> Tensor:
    return modeling_mamba.causal_conv1d_fn(x, weight, None, activation=activation)


def test_eager_mode_does_not_know(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(state_space, "causal_conv1d", None)
    x, weight = torch.randn(2, 5, 9), torch.randn(5, 4)
    expected = F.silu(F.conv1d(x, weight[:, None], padding=3, groups=5)[..., :9])
    torch.testing.assert_close(conv(x, weight, "silu"), expected)


@pytest.mark.parametrize(("activation", "ops"), [("silu", 1), (None, 1), ("swish", 1), ("gelu", 0)])
def test_what_the_operator_cannot_do_is_traced_as_it_was(activation: str | None, ops: int):
    x, weight, graphs = torch.randn(2, 5, 9), torch.randn(5, 4), Graphs()
    y = torch.compile(conv, backend=graphs, fullgraph=True)(x, weight, activation)
    torch.testing.assert_close(y, conv(x, weight, activation), rtol=1e-5, atol=1e-5)
    assert graphs.ops[0].total() == ops


@pytest.mark.parametrize(("device", "ops"), [("cuda", 1), ("meta", 0)])
def test_devices(device: str, ops: int):
    graphs = Graphs()
    with fake_cuda(), FakeTensorMode():
        x, weight = torch.empty(2, 5, 9, device=device), torch.empty(5, 4, device=device)
        torch.compile(conv, backend=graphs, fullgraph=True)(x, weight, "silu")
    assert graphs.ops[0].total() == ops


@pytest.mark.parametrize("ours_first", [False, True])
def test_other_backends_trace_what_they_would_without_us(ours_first: bool):
    x, weight, ours, other = torch.randn(2, 5, 9), torch.randn(5, 4), Graphs(), Graphs()
    other.takes_state_space_operators = False
    for graphs in (ours, other) if ours_first else (other, ours):
        torch.compile(conv, backend=graphs, fullgraph=True)(x, weight, "silu")
    assert (ours.ops, other.ops) == ([{"causal_conv1d": 1}], [{}])


def test_the_report_says_what_was_traced_as_it_was():
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj, self.weight = torch.nn.Linear(5, 5), torch.nn.Parameter(torch.randn(5, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.proj(conv(x, self.weight, "gelu").transpose(1, 2)) + x.transpose(1, 2)

    model = torch.nn.Sequential(Block()).requires_grad_(False)
    recipe = torchqx.QuambaConfig(quantize_head=True)
    report = torchqx.explain(torchqx.quantize(model, recipe, [(torch.randn(2, 5, 9),)]))
    (told,) = [s for s in report.sites if s.kind == "conv"]
    assert (told.key, told.status) == ("0:unsupported:0", "skipped")
    assert "causal_conv1d_fn was traced step by step" in told.reason


def test_states_that_the_operators_do_not_take_as_they_are():
    """A state of float16, and one that is a view with gaps between its rows, are written to all the same."""
    x, weight = torch.randn(2, 5, 1), torch.randn(5, 4)

    def step(state: Tensor) -> Tensor:
        return modeling_mamba.causal_conv1d_update(x, state, weight, None, "silu")

    for state in (torch.randn(2, 5, 4).half(), torch.randn(2, 2, 5, 4)[:, 1]):
        graphs, other = Graphs(), state.clone()
        y = torch.compile(step, backend=graphs, fullgraph=True)(state)
        torch.testing.assert_close(y, step(other), rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(state, other, rtol=2e-3, atol=2e-3)
        assert graphs.ops[0] == {"causal_conv1d_update": 1}
    graphs, state = Graphs(), torch.randn(2, 2, 5, 8).half()[:, 0]
    operands = (torch.randn(2, 5), torch.rand(2, 5), -torch.rand(5, 8), torch.randn(2, 8), torch.randn(2, 8))
    other = state.clone()
    y = torch.compile(modeling_mamba.mamba_selective_state_update, backend=graphs, fullgraph=True)(state, *operands)
    torch.testing.assert_close(y, modeling_mamba.mamba_selective_state_update(other, *operands), rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(state, other, rtol=2e-3, atol=2e-3)
    assert graphs.ops[0] == {"state_update": 1}


def test_an_exported_program_needs_no_operator_of_ours():
    class Conv(torch.nn.Module):
        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            return conv(x, weight, "silu")

    program = torch.export.export(Conv(), (torch.randn(2, 5, 9), torch.randn(5, 4)), strict=True)
    assert not any("torchqx" in str(node.target) for node in program.graph.nodes)


def late_module(name: str, parameters: str) -> ModuleType:
    """A modeling module that is loaded now, with a convolution whose result only eager mode gives."""
    module = ModuleType(name)
    exec(f"def causal_conv1d_fn({parameters}):\n    return hidden_states * 0", module.__dict__)
    inner = module.causal_conv1d_fn

    @functools.wraps(inner)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs)

    module.causal_conv1d_fn = wrapped
    sys.modules[name] = module
    return module


@pytest.mark.parametrize(("parameters", "ops"), [
    ("hidden_states, weight, bias=None, activation=None, **kwargs", 1),
    ("hidden_states, weight, activation=None, bias=None, **kwargs", 0),
])  # fmt: skip
@pytest.mark.parametrize("kernels", [False, True])
def test_modules_loaded_later_are_found(parameters: str, ops: int, kernels: bool):
    name = f"modeling_late_{ops}_{kernels}"
    module = late_module(name, parameters)
    if kernels:  # the package of that name puts a module around the function
        func = module.causal_conv1d_fn

        class Layer(torch.nn.Module):
            def forward(self, *args: Any, **kwargs: Any) -> Any:
                return func(*args, **kwargs)

        module.causal_conv1d_fn = Layer()
    try:
        graphs = Graphs()
        compiled = torch.compile(lambda x, w: module.causal_conv1d_fn(x, w), backend=graphs, fullgraph=True)
        with nullcontext() if ops else pytest.warns(TorchqxWarning, match=rf"{name}.causal_conv1d_fn\(.*activation"):
            y = compiled(torch.ones(1, 2, 5), torch.ones(2, 4))
        assert graphs.ops[0].total() == ops
        assert bool(y.any()) == bool(ops)
    finally:
        del sys.modules[name]


def test_a_module_seen_half_loaded_or_loaded_again(monkeypatch: pytest.MonkeyPatch):
    """Its functions are substituted as soon as they are there; those that took their place too; none twice."""
    name, found = "modeling_again", []
    monkeypatch.setattr(state_space_hosts, "_substitute", lambda function, _: found.append(function))
    monkeypatch.delitem(sys.modules, name, raising=False)
    functions = [late_module(name, "hidden_states, weight").causal_conv1d_fn for _ in range(2)]
    module = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    state_space_hosts.substitute_loaded()
    for function in functions:
        module.causal_conv1d_fn = function
        state_space_hosts.substitute_loaded()
        state_space_hosts.substitute_loaded()
    assert found == functions


def test_every_name_is_still_there():
    """A renamed function would silently be traced as it was."""
    assert state_space_hosts.STAND_INS.keys() == HOST_FUNCTIONS.keys()
    known = {name for name in HOST_FUNCTIONS if hasattr(modeling_mamba, name)}
    assert known == {"mamba_selective_scan", "mamba_selective_state_update", "causal_conv1d_fn", "causal_conv1d_update"}
