"""Which values are computed once for all layers, and that nothing else changes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code
from torch.fx import GraphModule

import torchqx
from tests.architectures import ARCHITECTURES
from tests.capture import capture_one
from torchqx.fx_passes.sites.ops import op_name
from torchqx.fx_passes.store_shared import store_shared
from torchqx.inductor_kernels.stored import STORED

WEIGHT = torch.randn(8, 8)


def passed(code: Callable[..., Tensor], *inputs: Tensor) -> GraphModule:
    """The graph of ``code`` after the pass, checked to compute what it did before."""
    gm, args = capture_one(code, *inputs)
    before = gm(*args)[0]
    torch.testing.assert_close(store_shared(gm)(*args)[0], before, rtol=0, atol=0)
    return gm


def stored(gm: GraphModule) -> list[str]:
    """Names of the ops whose results are stored."""
    return [op_name(node.args[0]) for node in gm.graph.nodes if node.target is STORED]


def turned(x: Tensor, angles: Tensor) -> Tensor:
    return x * angles.cos().unsqueeze(0) + x.flip(-1) * angles.sin().unsqueeze(0)


def two_layers(x: Tensor, angles: Tensor, weight: Tensor) -> Tensor:
    cos, sin = angles.cos().unsqueeze(0), angles.sin()[None]
    for _ in range(2):
        x = x @ weight
        x = x * cos + x.flip(-1) * sin
    return x


def test_what_several_layers_read_through_views() -> None:
    assert stored(passed(two_layers, torch.randn(2, 5, 8), torch.randn(5, 8), WEIGHT)) == ["cos", "sin"]


def test_one_reader_keeps_its_expression() -> None:
    def one_layer(x: Tensor, angles: Tensor, weight: Tensor) -> Tensor:
        return turned(x @ weight, angles)

    assert not stored(passed(one_layer, torch.randn(2, 5, 8), torch.randn(5, 8), WEIGHT))


def test_inputs_and_their_views_are_in_memory_already() -> None:
    def masked(x: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
        for _ in range(2):
            x = (x @ weight) * mask[:, None]
        return x

    assert not stored(passed(masked, torch.randn(5, 8), torch.randn(5), WEIGHT))


def test_a_part_of_an_input_is_in_memory_already() -> None:
    def parts(x: Tensor, both: Tensor, weight: Tensor) -> Tensor:
        part, _ = both.unbind(0)
        for _ in range(2):
            x = (x @ weight) * part
        return x

    assert not stored(passed(parts, torch.randn(5, 8), torch.randn(2, 8), WEIGHT))


def test_what_a_layer_computes_is_left_to_inductor() -> None:
    def residual(x: Tensor, weight: Tensor) -> Tensor:
        y = (x @ weight).cos()
        return y @ weight + y

    assert not stored(passed(residual, torch.randn(5, 8), WEIGHT))


def test_a_value_that_is_written_to_is_not_copied() -> None:
    def counting(x: Tensor, weight: Tensor) -> Tensor:
        steps = torch.arange(8.0).cos()
        y = (x @ weight) * steps
        steps.add_(1)
        return (y @ weight) * steps

    assert not stored(passed(counting, torch.randn(5, 8), WEIGHT))


def test_compiled_llama_computes_its_cosines_once() -> None:
    architecture = ARCHITECTURES["llama"]
    model = architecture.build().eval()
    inputs = architecture.inputs(2, 24)
    torchqx.quantize(model, torchqx.MinMaxConfig(activation="static"), [inputs])
    compiled = torch.compile(model, backend="torchqx")
    with torch.no_grad():
        _, codes = run_and_get_code(lambda: compiled(**inputs))
    assert model.config.num_hidden_layers > 1
    assert sum(code.count(".cos()") for code in codes) <= 2  # a vector loop and its tail


@pytest.mark.parametrize("made", [lambda x: x.unbind(0)[0], lambda x: x.chunk(2, 0)[0], torch.clone,
                                  lambda x: torch.cat([x])])
def test_a_compiled_model_leaves_its_input_alone(made: Callable[[Tensor], Tensor]) -> None:
    """Inductor may write into what only it has made; a mark on an input's own memory must not look like that."""
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
            a = made(shared)
            x = self.first(x) * a.flatten()[:32]
            x = self.second(x) * a.flatten()[:32]
            return x, a.index_put((torch.tensor([0]),), torch.tensor(7.0))

    torch._dynamo.reset()
    x, shared = torch.randn(4, 32), torch.randn(2, 32)
    before = shared.clone()
    model = torchqx.quantize(Layers().eval(), torchqx.MinMaxConfig(), [(x, shared)])
    with torch.no_grad():
        expected = model(x, shared)
        result = torch.compile(model, backend="torchqx")(x, shared)
    assert torch.equal(shared, before)
    torch.testing.assert_close(result[1], expected[1])
    torch.testing.assert_close(result[0], expected[0], rtol=0.05, atol=0.05)
