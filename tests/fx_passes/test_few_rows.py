"""Which linears become our kernel, which stay, and that the result stays."""

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code
from torch.fx import Graph, GraphModule, Node
from torch.nn import functional as F

import torchqx
from tests.architectures import ARCHITECTURES
from tests.capture import capture
from tests.fx_passes.rewrite import quantized, relative
from torchqx import runner
from torchqx.fx_passes.few_rows import FEW_ROWS, MOST_ROWS, SMALLEST, pays, use_few_rows_kernel
from torchqx.inductor_kernels.few_rows_linear import few_rows_linear_naive, is_supported

pytestmark = pytest.mark.skipif(not is_supported(torch.device("cpu"), torch.float32), reason="no kernel here")

K, N = 100, 1000


@pytest.fixture(autouse=True)
def without_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    """What becomes our kernel does not depend on the machine."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)


def calls(gm: GraphModule, target: Any = FEW_ROWS) -> list[Node]:
    return [node for node in gm.graph.nodes if node.target == target]


def operands(*rows: int, dtype: torch.dtype = torch.float32, k: int = K, n: int = N) -> list[Tensor]:
    return [torch.randn(*rows, k).to(dtype), torch.randn(n, k).to(dtype), torch.randn(n).to(dtype)]


def passed(code: Callable[..., Tensor], *inputs: Tensor, dynamic: bool = False) -> GraphModule:
    """The graph of ``code`` after the pass, checked to compute what it did before."""
    ((gm, args),) = capture(code, *inputs, dynamic=dynamic)
    with torch.no_grad():
        before = gm(*args)[0]
        after = use_few_rows_kernel(gm)(*args)[0]
    assert (after.dtype, after.shape) == (before.dtype, before.shape)
    assert relative(after, before) < (0.004 if after.dtype == torch.bfloat16 else 1e-6)
    return gm


COVERED: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
    "bias": (F.linear, operands(3)),
    "no bias": (lambda x, w, b: F.linear(x, w), operands(1)),
    "bfloat16": (F.linear, operands(1, 1, dtype=torch.bfloat16)),
    "by keyword": (lambda x, w, b: F.linear(bias=b, weight=w, input=x), operands(2)),
    "many dimensions": (F.linear, operands(2, 1, 3)),
    "one dimension": (F.linear, operands()),
    "rows not dense": (lambda x, w, b: F.linear(x[:, -1:], w, b), operands(2, 70)),
    "matmul with T": (lambda x, w, b: x @ w.T, operands(2, 3)),
    "matmul with t": (lambda x, w, b: torch.matmul(x, w.t()), operands(3)),
    "matmul method": (lambda x, w, b: x.matmul(w.mT), operands(1)),
    "mm": (lambda x, w, b: torch.mm(x, w.transpose(0, 1)), operands(3)),
    "mm by keyword": (lambda x, w, b: torch.mm(input=x, mat2=w.permute(1, 0)), operands(3)),
    "16 rows in bfloat16": (F.linear, operands(16, dtype=torch.bfloat16)),
    "weight computed": (lambda x, w, b: F.linear(x, w * 2, b), operands(3)),
}


@pytest.mark.parametrize("case", COVERED)
def test_covered(case: str) -> None:
    code, inputs = COVERED[case]
    gm = passed(code, *inputs)
    assert len(calls(gm)) == 1
    assert not any(calls(gm, target) for target in (F.linear, torch.matmul, operator.matmul, torch.mm))


STAY: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
    "many rows": (F.linear, operands(4, 5)),
    "9 rows in float32": (F.linear, operands(9)),
    "float64": (F.linear, operands(1, dtype=torch.float64)),
    "small": (F.linear, operands(1, n=63)),
    "matmul with [K, N]": (lambda x, w: x @ w, [torch.randn(3, K), torch.randn(K, N)]),
    "weight not dense": (lambda x, w, b: F.linear(x, w[:, :K]), operands(1)[:1] + operands(1, k=2 * K)[1:]),
    "bias of one element": (F.linear, [*operands(3)[:2], torch.randn(1)]),
    "bias per row": (F.linear, [*operands(3)[:2], torch.randn(3, N)]),
    "stacked weights": (lambda x, w: x @ w.mT, [torch.randn(3, 2, K), torch.randn(3, 200, K)]),
    "a vector": (lambda x, w, b: w @ x, operands()),
}


@pytest.mark.parametrize("case", STAY)
def test_stays(case: str) -> None:
    code, inputs = STAY[case]
    assert not calls(passed(code, *inputs))


def test_symbolic_rows_stay_and_one_row_of_them_does_not() -> None:
    def code(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.linear(x, w, b) + F.linear(x[-1:], w, b)

    x, weight, bias = operands(5)
    for t in (weight, bias):
        torch._dynamo.mark_static(t)
    gm = passed(code, x, weight, bias, dynamic=True)
    assert (len(calls(gm)), len(calls(gm, F.linear))) == (1, 1)


def test_autocast_decides_about_the_dtype() -> None:
    """Float32 operands become bfloat16 inside: not ours. Those that are bfloat16 already are."""
    def code(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.linear(x, w, b)

    assert not calls(passed(code, *operands(3)))
    assert calls(passed(code, *operands(3, dtype=torch.bfloat16)))


def test_mapped_linears_stay() -> None:
    ((gm, _),) = capture(torch.func.vmap(F.linear, in_dims=(0, None, None)), *operands(3))
    assert len(calls(use_few_rows_kernel(gm), F.linear)) == 1


def test_a_matmul_into_a_given_tensor_stays() -> None:
    def code(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        out = torch.ones(3, N)
        torch.matmul(x, w.T, out=out)
        return out + 1

    assert not calls(passed(code, *operands(3)))


def test_a_graph_by_hand_whose_values_are_not_known() -> None:
    graph = Graph()
    x, weight = graph.placeholder("x"), graph.placeholder("weight")
    graph.output(graph.call_function(F.linear, (x, weight)))
    assert not calls(use_few_rows_kernel(GraphModule({}, graph)))


def test_what_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype, most in MOST_ROWS.items():
        assert pays(dtype, most, SMALLEST)
        assert not pays(dtype, most + 1, SMALLEST)
        assert not pays(dtype, 1, SMALLEST - 1)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert pays(torch.float32, 1, SMALLEST)
    assert not pays(torch.bfloat16, 1, SMALLEST)


class Decoder(nn.Module):
    """A quantized layer under a head that stays float and shares the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Embedding(N, K), nn.Linear(K, K)
        self.head = nn.Linear(K, N, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(ids))[:, -1:])


def test_compiled_by_inductor() -> None:
    ids = torch.randint(N, (1, 50))
    model = quantized(Decoder().bfloat16(), torchqx.OutlierSuppressionPlusConfig(), ids)
    torch._dynamo.reset()
    with torch.no_grad():
        result, sources = run_and_get_code(torch.compile(model, backend="torchqx"), ids)
        hidden = model.layer(model.embedding(ids))[:, -1:]
    assert relative(result, few_rows_linear_naive(hidden, model.head.weight, None)) < 0.02
    assert "".join(sources).count("torch.ops.torchqx.few_rows_linear.default(") == 1


class Transposed(nn.Linear):
    """Its parameter is [K, N]: no row of weights lies dense."""

    def __init__(self) -> None:
        super().__init__(N, K, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


@pytest.mark.parametrize("recipe", [torchqx.MinMaxConfig(quantize_head=True),
                                    torchqx.HadamardConfig(quantize_head=True)])
def test_integer_weights_that_run_in_float(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of decoding whose matmuls the policy leaves in float; what the pass is told of their memory is so."""
    model = quantized(nn.Sequential(nn.Linear(K, K), Transposed(), nn.Linear(N, K)), recipe, torch.randn(50, K))
    graphs: list[GraphModule] = []
    monkeypatch.setattr(runner, "use_few_rows_kernel", lambda gm: graphs.append(use_few_rows_kernel(gm)))
    first, second, third = weights = [layer.weight.dequantize() for layer in model]
    x = torch.randn(1, K)
    with torch.no_grad():
        y = torch.compile(model, backend="torchqx", options={"cost_model": "float", "lowering": "eager"})(x)
        exact = F.linear(F.linear(x, first, model[0].bias) @ second, third, model[2].bias)
    assert relative(y, exact) < 1e-5
    (gm,) = graphs
    assert [n.args[0].target for n in calls(gm)] == [operator.matmul]
    shown = [n.meta["example_value"] for n in gm.graph.nodes if n.name.startswith("dequantized")]
    assert [(w.shape, w.stride()) for w in shown] == [(w.shape, w.contiguous().stride()) for w in weights]


@pytest.mark.parametrize("tied", [False, True])
def test_a_llama_that_is_fed_and_decodes(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head of the last token, then of each token decoded."""
    architecture, graphs = ARCHITECTURES["llama"], []
    monkeypatch.setattr(runner, "use_few_rows_kernel", lambda gm: graphs.append(use_few_rows_kernel(gm)))
    build = architecture.build
    model = build.func(*build.args, **build.keywords | {
        "num_hidden_layers": 1, "vocab_size": N, "tie_word_embeddings": tied})
    ids = architecture.inputs(1, 14)["input_ids"]
    torchqx.quantize(model, torchqx.OutlierSuppressionPlusConfig(), [{"input_ids": ids}])
    compiled = torch.compile(model, backend="torchqx", options={"lowering": "eager"})
    with torch.no_grad():
        graphs.clear()
        (fed, cache), (exact, expected) = (
            (out.logits, out.past_key_values) for m in (compiled, model)
            for out in [m(input_ids=ids, use_cache=True, logits_to_keep=1)])
        assert relative(fed, exact) < 0.01
        for step in range(2):
            token = ids[:, step : step + 1]
            fed, exact = (m(input_ids=token, past_key_values=past, use_cache=True).logits
                          for m, past in ((compiled, cache), (model, expected)))
            assert relative(fed, exact) < 0.01
    assert graphs
    for gm in graphs:
        assert len(calls(gm)) == 1
        assert not calls(gm, F.linear)
