"""Which products move into the matmul that computes both operands, which stay, and that the result does."""

import re
from dataclasses import replace

import pytest
import torch
import transformers
from torch import nn
from torch._inductor.utils import run_and_get_code
from torch.nn import functional as F

import torchqx
from tests.fx_passes.rewrite import STATIC, Code, Rewritten, quantized, relative, rewrite
from torchqx.fx_passes.fuse_epilogue import ACTIVATION, OUT_MUL, RESIDUAL
from torchqx.fx_passes.gated import LEAST_ROWS
from torchqx.fx_passes.lower import PACKED
from torchqx.inductor_kernels.int8_linear.cpu import is_supported
from torchqx.inductor_kernels.int8_linear.quantize import quantize_per_token, quantize_static
from torchqx.inductor_kernels.int8_linear.schema import GATE

pytestmark = pytest.mark.skipif(not is_supported(torch.device("cpu")), reason="no CPU kernel with epilogues here")

K, N = 24, 128
TOKEN = replace(STATIC, activation="token", shift=False)


def fused(code, recipe=STATIC, dtype=torch.float32, layers=((K, N), (K, N)), bias=True, rows=17) -> Rewritten:
    """The fused graph, whose result is checked against that of the graph as it was."""
    torch.manual_seed(0)
    x = torch.randn(rows, K, dtype=dtype)
    model = Code(code, *(nn.Linear(*sizes, bias=bias) for sizes in layers)).to(dtype)
    model = quantized(model, recipe, x * 1.5)
    result = rewrite(model, x, fuse=True)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    assert relative(result(), rewrite(model, x)()) < tolerance
    return result


def gates(result: Rewritten) -> list[tuple[str, int]]:
    """Activation and gate of each gated matmul."""
    return [(n.args[ACTIVATION], n.args[GATE]) for n in result.calls(PACKED) if len(n.args) > GATE]


@pytest.mark.parametrize(("code", "expected"), [
    (lambda x, a, b: F.silu(a(x)) * b(x), ("silu", 0)),
    (lambda x, a, b: b(x) * F.silu(a(x)), ("silu", 1)),
    (lambda x, a, b: torch.mul(F.gelu(a(x), approximate="tanh"), b(x)), ("gelu_tanh", 0)),
    (lambda x, a, b: F.relu(a(x)).mul(b(x)), ("relu", 0)),
    (lambda x, a, b: a(x) * F.gelu(b(x)), ("gelu", 1)),
    (lambda x, a, b: a(x) * b(x), ("none", 0)),
], ids=["gate first", "gate second", "torch.mul", "method", "exact gelu", "no activation"])
def test_two_matmuls(code, expected) -> None:
    result = fused(code)
    assert gates(result) == [expected]
    assert len(result.calls(PACKED)) == 1
    assert not result.calls(torch.narrow)


def test_in_place_product() -> None:
    def code(x, a, b):
        y = F.silu(a(x), inplace=True)
        y *= b(x)
        return y

    assert gates(fused(code)) == [("silu", 0)]


@pytest.mark.parametrize("split", [lambda y: y.chunk(2, dim=-1), lambda y: torch.split(y, N, dim=1),
                                   lambda y: y.chunk(2, 1)])
def test_one_matmul_that_is_split(split) -> None:
    def code(x, a):
        gate, up = split(a(x))
        return up * F.silu(gate)

    result = fused(code, layers=((K, 2 * N),))
    assert gates(result) == [("silu", 0)]
    assert len(result.module.graph.find_nodes(op="call_method", target="chunk")) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_requantized_for_the_next_matmul(dtype, bias) -> None:
    result = fused(lambda x, a, b, c: c(F.silu(a(x)) * b(x)), dtype=dtype, layers=((K, N), (K, N), (N, K)), bias=bias)
    assert gates(result) == [("silu", 0)]
    assert result.calls(PACKED)[0].args[OUT_MUL] is not None
    assert len(result.calls(quantize_static)) == 1  # of the model's input alone


def test_one_range_per_token_is_found_behind_it() -> None:
    result = fused(lambda x, a, b, c: c(F.silu(a(x)) * b(x)), recipe=TOKEN, layers=((K, N), (K, N), (N, K)))
    assert gates(result) == [("silu", 0)]
    assert len(result.calls(quantize_per_token)) == 2


def test_an_activation_and_a_sum_behind_the_product() -> None:
    result = fused(lambda x, a, b: F.relu(F.silu(a(x)) * b(x)))
    assert gates(result) == [("silu", 0)]
    assert len(result.calls(F.relu)) == 1
    result = fused(lambda x, a, b: x[:, :1].expand(-1, N).contiguous() + F.silu(a(x)) * b(x))
    assert gates(result) == [("silu", 0)]
    assert result.calls(PACKED)[0].args[RESIDUAL] is not None


@pytest.mark.parametrize("code", [
    lambda x, a, b: F.silu(y := a(x)) * b(x) + y,
    lambda x, a, b: F.silu(a(x)) * (y := b(x)) + y,
    lambda x, a, b: (y := F.silu(a(x))) * b(x) + y,
    lambda x, a, b: F.silu(a(x)) * b(x + 1),
    lambda x, a, b: F.silu(a(x) + 1) * b(x),
    lambda x, a, b: F.silu(a(x)) + b(x),
    lambda x, a, b: F.silu(a(x)) * F.relu(b(x)),
    lambda x, a, b: torch.sigmoid(a(x)) * b(x),
    lambda x, a, b: F.silu(a(x)) * b(x)[:1],
    lambda x, a, b: torch.mul(F.silu(a(x)), b(x), out=torch.empty(17, N)),
], ids=["gate read twice", "partner read twice", "activation read twice", "other codes", "sum before", "sum",
        "both activated", "unknown activation", "broadcast", "out="])
def test_what_stays(code) -> None:
    assert gates(fused(code)) == []


@pytest.mark.parametrize("layers", [((K, 63), (K, 63)), ((K, 96), (K, 96)), ((K, N), (K, 1))])
def test_halves_that_are_no_whole_panels_stay(layers) -> None:
    assert gates(fused(lambda x, a, b: F.silu(a(x)) * b(x), layers=layers)) == []


def test_few_rows_stay() -> None:
    assert gates(fused(lambda x, a, b: F.silu(a(x)) * b(x), rows=LEAST_ROWS - 1)) == []


def test_results_that_are_cast_first_stay() -> None:
    """The kernel writes no float16."""
    assert gates(fused(lambda x, a, b: F.silu(a(x)) * b(x), dtype=torch.float16)) == []


def test_a_third_matmul_beside_the_two_stays() -> None:
    def code(x, a, b, c):
        return F.silu(a(x)) * b(x) + c(x)

    assert gates(fused(code, layers=((K, N),) * 3)) == []


@pytest.mark.parametrize("split", [lambda y: y.chunk(2, dim=0), lambda y: y.split([64, 64, N], -1)[:2]])
def test_other_splits_stay(split) -> None:
    def code(x, a):
        gate, up, *_ = split(a(x))
        return F.silu(gate) * up

    assert gates(fused(code, layers=((K, 2 * N),), rows=34)) == []


def test_halves_that_one_size_makes_equal_by_chance_stay_and_it_stays_free() -> None:
    """A guard on it would be one that nothing checks: Dynamo's own are made by then."""
    def code(x, a):
        gate, up = a(x).split([x.shape[0], 2 * N - x.shape[0]], -1)
        return F.silu(gate).sum() * up.sum()

    model = quantized(Code(code, nn.Linear(K, 2 * N)), STATIC, torch.randn(N, K))
    x = torch.randn(N, K)
    torch._dynamo.mark_dynamic(x, 0)
    guards = []
    for fuse in (False, True):
        nodes = rewrite(model, x, fuse=fuse).module.graph.nodes
        sizes = next(v.shape for n in nodes if isinstance(v := n.meta.get("example_value"), torch.Tensor) and
                     not isinstance(v.shape[0], int))
        guards.append(len(sizes[0].node.shape_env.guards))
    assert guards[0] == guards[1]


def test_a_compiled_llama(monkeypatch) -> None:
    """One gated matmul per layer, the logits as without the pass, and no weight packed twice."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                                      num_key_value_heads=2, intermediate_size=192)
    model = transformers.LlamaForCausalLM(config).eval()
    tokens = torch.randint(0, 100, (2, 14))
    torchqx.quantize(model, torchqx.MinMaxConfig(activation="static"), [tokens])
    torch._dynamo.reset()
    with torch.no_grad():
        result, (code,) = run_and_get_code(torch.compile(model, backend="torchqx", dynamic=False), tokens)
        monkeypatch.setattr("torchqx.runner.fuse_gates", lambda graph: None)
        torch._dynamo.reset()
        plain = torch.compile(model, backend="torchqx", options={"lowering": "eager"})(tokens)
    assert len(re.findall(r"int8_linear\.default\(.*'silu'.*, 0\)\n", code)) == 2
    assert relative(result.logits, plain.logits) < 1e-2
    for block in model.model.layers:
        gate, up = (part.weight.qdata for part in (block.mlp.gate_proj, block.mlp.up_proj))
        assert gate.untyped_storage().data_ptr() == up.untyped_storage().data_ptr()


class CrossAttention(nn.Module):
    """Values before keys, so that a rotation that could not be folded follows the first of two halves."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(128, 128) for _ in range(4))

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        v, k, q = (layer(y).view(2, -1, 2, 64).transpose(1, 2)
                   for layer, y in ((self.v, memory), (self.k, memory), (self.q, x)))
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.o(y.transpose(1, 2).reshape(x.shape))


def test_a_rotated_half_is_no_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchqx.folding.TOLERANCE", -1.0)  # every fold is refused
    torch.manual_seed(0)
    model, inputs = CrossAttention(), (torch.randn(2, 20, 128), torch.randn(2, 24, 128))
    with torch.no_grad():
        expected = model(*inputs)
        torchqx.quantize(model, torchqx.HadamardConfig(fold="all"), [inputs])
        with pytest.warns(torchqx.errors.TorchqxWarning, match="rotations stay online"):
            y = torch.compile(model, backend="torchqx", options={"lowering": "eager", "cost_model": "int8"})(*inputs)
    assert relative(y, expected) < 0.02
