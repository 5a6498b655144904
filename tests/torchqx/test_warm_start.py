"""A second process finds everything in torch's caches; what a cached graph was made with is part of its key."""

import operator
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import torch
from torch._inductor.codecache import FxGraphHashDetails
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule

import torchqx
from tests.torchqx.small import Attention, batch
from torchqx import warm_start
from torchqx.fx_passes.lower import HADAMARD
from torchqx.inductor_kernels.int8_linear.quantize import quantize_static
from torchqx.warm_start import cacheable_functions, show_values, sources_digest

PROCESS = """
import sys
import torch
from torch._dynamo.utils import counters
from tests.torchqx.small import batch

model, expected = torch.load(sys.argv[1], weights_only=False)
compiled = torch.compile(model, backend="torchqx", options={"cost_model": "int8"})
with torch.no_grad():
    result = compiled(batch(64))
if len(sys.argv) > 2:
    torch.save((model, result), sys.argv[1])
else:
    assert torch.equal(result, expected)
print(dict(counters["aot_autograd"]), dict(counters["inductor"]))
"""


def test_nothing_is_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Graphs of earlier runs do not count; the C++ kernels in the same cache do.
    monkeypatch.setenv("TORCH_COMPILE_CACHE_KEY_TAG", str(uuid.uuid4()))
    model = torchqx.quantize(Attention(), torchqx.MinMaxConfig(activation="token"), [batch(64)])
    torch.save((model, None), tmp_path / "model")

    def run(*more: str) -> str:
        done = subprocess.run([sys.executable, "-c", PROCESS, str(tmp_path / "model"), *more],
                              capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = run("first")
    assert "autograd_cache_saved" in first
    assert "hit" not in first
    again = run()
    assert "autograd_cache_hit" in again
    assert "fxgraph_cache_hit" in again
    assert "miss" not in again


def graph() -> GraphModule:
    """quantize_static(x + 1).view(-1), the quantizer without an example value, as a pass leaves it."""
    made = Graph()
    x, mul, add = (made.placeholder(name) for name in ("x", "mul", "add"))
    more = made.call_function(operator.add, (x, 1))
    codes = made.call_function(quantize_static, (more, mul, add, 0, 255))
    made.output(made.call_method("reshape", (codes, -1)))
    return GraphModule(torch.nn.Module(), made)


def test_only_functions_of_this_package_are_vouched_for() -> None:
    assert cacheable_functions(graph()) == {
        "torchqx": sources_digest(),
        "torchqx.inductor_kernels.int8_linear.quantize.quantize_static": sources_digest()}


def test_a_graph_of_operators_alone_depends_on_our_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Graph()
    made.output(made.call_function(HADAMARD, (made.placeholder("x"), None, 64, False)))
    gm = GraphModule(torch.nn.Module(), made)
    details = []
    for digest in ("before", "after"):
        monkeypatch.setattr(warm_start, "sources_digest", lambda digest=digest: digest)
        with torch._inductor.config.patch(unsafe_marked_cacheable_functions=cacheable_functions(gm)):
            details.append(FxGraphHashDetails(None, [], {}, []).inductor_config)
    assert details[0] != details[1]


@pytest.mark.parametrize("name", ["a.py", "a.h", "a.cpp"])
def test_every_kind_of_source_is_in_the_digest(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_start, "__file__", str(tmp_path / "warm_start.py"))
    before = sources_digest.__wrapped__()
    (tmp_path / name).write_text("new")
    assert sources_digest.__wrapped__() != before


def test_values_are_shown_where_they_are_missing() -> None:
    gm, mode = graph(), FakeTensorMode()
    known = mode.from_tensor(torch.empty(7, 63))
    nodes = {n.name: n for n in gm.graph.nodes}
    nodes["add_1"].meta["example_value"] = known
    show_values(gm, [mode.from_tensor(t) for t in (torch.empty(7, 63), torch.empty(63), torch.empty(63))], mode)
    assert nodes["add_1"].meta["example_value"] is known
    assert nodes["quantize_static"].meta["example_value"].dtype == torch.uint8
    assert nodes["reshape"].meta["example_value"].shape == (7 * 63,)
