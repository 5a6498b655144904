"""Which attentions become our kernel, which stay, and that the result stays."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code
from torch.fx import GraphModule, Node
from torch.nn import functional as F

import torchqx
from tests.architectures import ARCHITECTURES
from tests.capture import capture
from tests.fx_passes.rewrite import STATIC, Code, quantized, relative, rewrite
from torchqx import runner
from torchqx.fx_passes.attention_kernel import ATTENTION, OUT_MUL, pays, use_attention_kernel
from torchqx.inductor_kernels.attention import is_supported
from torchqx.inductor_kernels.int8_linear.quantize import quantize_static

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not is_supported(CPU, torch.float32), reason="no attention kernel for this CPU")

B, H, S, D = 2, 4, 5, 16
LOW = float("-inf")
sdpa = F.scaled_dot_product_attention


def calls(gm: GraphModule, target: Any = ATTENTION) -> list[Node]:
    return [node for node in gm.graph.nodes if node.target == target]


def passed(code: Callable[..., Tensor], *inputs: Tensor, dynamic: bool = False) -> GraphModule:
    """The graph of ``code`` after the pass, checked to compute what it did before."""
    ((gm, args),) = capture(code, *inputs, dynamic=dynamic)
    with torch.no_grad():
        before = gm(*args)[0]
        after = use_attention_kernel(gm)(*args)[0]
    assert after.dtype == before.dtype
    assert relative(after, before) < (0.01 if after.dtype == torch.bfloat16 else 1e-6)
    return gm


def operands(heads: int = H, kv_heads: int = H, rows: int = S, keys: int = S, width: int = D,
             dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(B, n, length, width).to(dtype) for n, length in
            ((heads, rows), (kv_heads, keys), (kv_heads, keys))]


def repeated(x: Tensor) -> Tensor:
    batch, heads, keys, width = x.shape
    return x[:, :, None, :, :].expand(batch, heads, 2, keys, width).reshape(batch, 2 * heads, keys, width)


COVERED: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
    "plain": (sdpa, operands()),
    "bfloat16": (sdpa, operands(dtype=torch.bfloat16)),
    "causal": (lambda q, k, v: sdpa(q, k, v, is_causal=True), operands()),
    "scale": (lambda q, k, v: sdpa(q, k, v, scale=0.3), operands()),
    "other keys": (sdpa, operands(rows=3, keys=70)),
    "bool mask": (sdpa, [*operands(), torch.rand(B, 1, S, S) > 0.3]),
    "mask of 2 dimensions": (sdpa, [*operands(), torch.randn(S, S)]),
    "expanded mask": (lambda q, k, v, m: sdpa(q, k, v, m.expand(B, 1, S, S)), [*operands(), torch.randn(B, 1, 1, S)]),
    "grouped": (lambda q, k, v: sdpa(q, k, v, enable_gqa=True), operands(kv_heads=2)),
    "by keyword": (lambda q, k, v: sdpa(key=k, value=v, query=q, dropout_p=0.0), operands()),
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("case", COVERED)
def test_covered(case: str, dynamic: bool) -> None:
    code, inputs = COVERED[case]
    gm = passed(code, *inputs, dynamic=dynamic)
    if not dynamic:  # symbolic widths are no multiple of 8 that is known, and stay
        assert (len(calls(gm)), len(calls(gm, sdpa))) == (1, 0)


STAY: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
    "3 dimensions": (sdpa, [t[0] for t in operands()]),
    "width 12": (sdpa, operands(width=12)),
    "float64": (sdpa, operands(dtype=torch.float64)),
    "negative scale": (lambda q, k, v: sdpa(q, k, v, scale=-0.3), operands()),
    "narrower values": (lambda q, k, v: sdpa(q, k, v[..., :8]), operands()),
    "one mask for all keys": (sdpa, [*operands(), torch.randn(B, 1, S, 1)]),
    "one key head broadcast": (lambda q, k, v: sdpa(q, k[:, :1], v[:, :1]), operands()),
    "one row per head in float32": (sdpa, operands(rows=1, keys=70)),
}


@pytest.mark.parametrize("case", STAY)
def test_stays(case: str) -> None:
    code, inputs = STAY[case]
    gm = passed(code, *inputs)
    assert (len(calls(gm)), len(calls(gm, sdpa))) == (0, 1)


def test_dropout_stays() -> None:
    ((gm, _),) = capture(lambda q, k, v: sdpa(q, k, v, dropout_p=0.1), *operands())
    assert not calls(use_attention_kernel(gm))


def test_what_pays(monkeypatch) -> None:
    assert pays(torch.float32, 2)
    assert not pays(torch.float32, 1)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert pays(torch.bfloat16, 1)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert not pays(torch.bfloat16, 100)


REPEATS: dict[str, Callable[[Tensor], Tensor]] = {
    "expand": repeated,
    "unsqueeze": lambda x: x.unsqueeze(2).expand(-1, -1, 2, -1, -1).flatten(1, 2),
    "repeat_interleave": lambda x: x.repeat_interleave(2, dim=1),
    "repeat_interleave function": lambda x: torch.repeat_interleave(x, 2, 1),
}


@pytest.mark.parametrize("spelling", REPEATS)
def test_repeated_heads_are_read_once(spelling: str) -> None:
    repeat = REPEATS[spelling]
    gm = passed(lambda q, k, v: sdpa(q, repeat(k), repeat(v)), *operands(kv_heads=2))
    (node,) = calls(gm)
    assert [n.op for n in node.args[1:3]] == ["placeholder"] * 2
    assert not any("expand" in str(n.target) or "interleave" in str(n.target) for n in gm.graph.nodes)


NO_REPEATS: dict[str, Callable[[Tensor], Tensor]] = {
    "in turns": lambda x: x[:, None].expand(B, 2, 2, S, D).reshape(B, 4, S, D),
    "keys become heads": lambda x: x[:, :, None].expand(B, 2, 2, S, D).reshape(B, S, 4, D).transpose(1, 2),
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "interleaved keys": lambda x: x.repeat_interleave(2, dim=2).reshape(B, 4, S, D),
}


@pytest.mark.parametrize("spelling", NO_REPEATS)
def test_other_arrangements_are_not_taken_for_repeated_heads(spelling: str) -> None:
    arrange = NO_REPEATS[spelling]
    gm = passed(lambda q, k, v: sdpa(q, arrange(k), arrange(v)), *operands(kv_heads=2))
    assert calls(gm)[0].args[1].op != "placeholder"


def test_keys_written_after_they_were_repeated_are_not_read_late() -> None:
    def code(q, k, v):
        k, v = k + 1, v + 1
        many, values = repeated(k), repeated(v)
        k.mul_(3)
        return sdpa(q, many, values) + k.sum()

    assert calls(passed(code, *operands(kv_heads=2)))


def test_only_keys_repeated() -> None:
    gm = passed(lambda q, k, v: sdpa(q, repeated(k), v.repeat(1, 2, 1, 1)), *operands(kv_heads=2))
    assert calls(gm)[0].args[1].op != "placeholder"


class Block(nn.Module):
    """Attention between two quantized matmuls; ``join`` takes the heads together."""

    def __init__(self, join: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.join, self.qkv, self.out = join, nn.Linear(64, 192), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (4, 16)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return self.out(self.join(sdpa(q, k, v)))


JOINS: dict[str, Callable[[Tensor], Tensor]] = {
    "reshape": lambda y: y.transpose(1, 2).reshape(B, S, 64),
    "contiguous": lambda y: y.transpose(1, 2).contiguous().view(B, S, -1),
    "flatten": lambda y: y.permute(0, 2, 1, 3).flatten(2),
    "rows": lambda y: y.transpose(-2, -3).reshape(B * S, 64),
    "through a view": lambda y: y.reshape(B, -1, S, 16).transpose(1, 2).contiguous().reshape(B, S, -1).contiguous(),
}


@pytest.mark.parametrize("dtype", [d for d in (torch.float32, torch.bfloat16) if is_supported(CPU, d)])
@pytest.mark.parametrize("join", JOINS)
def test_the_quantizer_joins_the_kernel(join: str, dtype: torch.dtype) -> None:
    x = torch.randn(B, S, 64).to(dtype)
    model = quantized(Block(JOINS[join]).to(dtype), STATIC, x * 1.5)
    plain, fused = rewrite(model, x), rewrite(model, x)
    use_attention_kernel(fused.module)
    (node,) = fused.calls(ATTENTION)
    assert node.args[OUT_MUL] is not None
    assert len(fused.calls(quantize_static)) == 1  # of the model's input alone
    assert relative(fused(), plain()) < (0.002 if dtype == torch.float32 else 0.03)


OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "no swap": lambda y: y.reshape(B, S, 64),
    "read twice": lambda y: (z := y.transpose(1, 2).reshape(B, S, 64)) * torch.sigmoid(z),
    "halves of the rows": lambda y: F.pad(y.transpose(1, 2).reshape(B, 2 * S, 32), (0, 32)),
    "other swap": lambda y: y.transpose(2, 3).reshape(B, S, 64),
}


@pytest.mark.parametrize("join", OTHERS)
def test_the_quantizer_stays_apart(join: str) -> None:
    x = torch.randn(B, S, 64)
    model = quantized(Block(OTHERS[join]), STATIC, x * 1.5)
    plain, fused = rewrite(model, x), rewrite(model, x)
    use_attention_kernel(fused.module)
    (node,) = fused.calls(ATTENTION)
    assert node.args[OUT_MUL] is None
    assert relative(fused(), plain()) < 1e-5


def test_two_matmuls_with_one_quantizer_read_the_codes() -> None:
    def code(x, qkv, a, b):
        q, k, v = (t.unflatten(-1, (4, 16)).transpose(1, 2) for t in qkv(x).chunk(3, -1))
        y = sdpa(q, k, v).transpose(1, 2).flatten(2)
        return a(y) * b(y)

    x = torch.randn(B, S, 64)
    model = quantized(Code(code, nn.Linear(64, 192), nn.Linear(64, 64), nn.Linear(64, 64)), STATIC, x * 1.5)
    fused = rewrite(model, x)
    use_attention_kernel(fused.module)
    assert fused.calls(ATTENTION)[0].args[OUT_MUL] is not None


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_models(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call that writes codes, also at other sizes; padding masks included."""
    architecture, graphs = ARCHITECTURES[name], []
    monkeypatch.setattr(runner, "use_attention_kernel", lambda gm: graphs.append(use_attention_kernel(gm)))
    build = architecture.build
    model = build.func(*build.args, **build.keywords | {"num_hidden_layers": 1})
    options = {"use_cache": False} if architecture.decoder else {}
    torchqx.quantize(model, torchqx.OutlierSuppressionPlusConfig(activation="static"), [architecture.inputs(2, 14)])
    compiled = torch.compile(model, backend="torchqx", dynamic=True, options={"lowering": "eager"})
    with torch.no_grad():
        for size in ((2, 12), (3, 9)):
            inputs = architecture.inputs(*size)
            assert relative(compiled(**inputs, **options)[0], model(**inputs, **options)[0]) < 0.005
    (gm,) = graphs
    assert [node.args[OUT_MUL] is not None for node in calls(gm)] == [True]
    assert not calls(gm, sdpa)


def test_compiled_by_inductor() -> None:
    x = torch.randn(B, S, 64)
    model = quantized(Block(JOINS["reshape"]), STATIC, x * 1.5)
    torch._dynamo.reset()
    with torch.no_grad():
        result, sources = run_and_get_code(torch.compile(model, backend="torchqx"), x)
        assert relative(result, model(x)) < 0.005
    code = "".join(sources)
    attentions = [line for line in code[code.index("def call(") :].split("\n") if "torchqx.attention.default(" in line]
    assert len(attentions) == 1
    assert "None, None, 0, 255)" not in attentions[0]
    assert "_scaled_dot_product" not in code
