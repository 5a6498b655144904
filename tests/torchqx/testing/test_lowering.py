"""Functions and modules lowered for a GPU that is not there."""

import pytest
import torch
from torch import Tensor, nn

from torchqx.errors import UnsupportedError
from torchqx.testing import fake_cuda, lower_for_gpu
from torchqx.testing.fake_cuda import private
from torchqx.testing.wrapper import read_wrapper


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(20, 9), nn.Linear(9, 20)
        self.register_buffer("offset", torch.randn(20))

    def forward(self, x: Tensor, more: dict[str, Tensor]) -> dict[str, Tensor]:
        hidden = self.first(x).relu()
        return {"y": self.second(hidden) + more["add"], "hidden": hidden, "offset": self.offset}


@torch.no_grad()
def test_a_module_with_trees() -> None:
    net, x, more = Net(), torch.randn(7, 20), {"add": torch.randn(7, 20)}
    program = lower_for_gpu(net, (x, more), options={})
    result, expected = program.run(x, more), net(x, more)
    assert set(result) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value)
    assert len(program.extern_calls) == 2
    assert all("extern_kernels" in name for name in program.extern_calls)
    assert program.kernel_count >= 1


def test_kernels_and_grids() -> None:
    program = lower_for_gpu(lambda x: (x.exp() + 1).sum(-1), (torch.randn(5, 300),))
    (kernel,) = program.kernels
    assert kernel.kind in ("persistent_reduction", "reduction")
    assert {"aten.exp", "aten.add", "aten.sum"} <= set(kernel.origins)
    assert program.grids == [(5, 1, 1)]
    assert program.operations == 3


def test_what_is_not_one_graph() -> None:
    def breaks(x: Tensor) -> Tensor:
        y = x + 1
        torch._dynamo.graph_break()
        return y * 2

    with pytest.raises(UnsupportedError, match="2 graphs"):
        lower_for_gpu(breaks, (torch.randn(3),))


def test_nothing_stays_replaced() -> None:
    available, driver = torch.cuda.is_available(), torch.version.cuda
    with fake_cuda("sm_80") as there:
        assert torch.cuda.is_available()
        assert torch.cuda.get_device_capability() == there.capability == (8, 0)
    assert torch.cuda.is_available() == available
    assert torch.version.cuda == driver
    assert torch.compile(lambda x: x + 1, dynamic=False)(torch.ones(3)).tolist() == [2, 2, 2]


def test_a_private_name_that_is_gone() -> None:
    with pytest.raises(UnsupportedError, match=rf"torch {torch.__version__[:4]}.*torch.cuda._exchange_nothing"):
        private(torch.cuda, "_exchange_nothing")


def test_a_tensor_on_a_device_is_refused() -> None:
    program = lower_for_gpu(lambda x: x + 1, (torch.randn(3),))
    with pytest.raises(UnsupportedError, match="CPU tensors"):
        program.call([torch.empty(3, device="meta")])


def test_text_of_another_form() -> None:
    with pytest.raises(UnsupportedError, match="heuristic"):
        read_wrapper("k = async_compile.triton('k', '''def k(): pass''')\ndef call(args):\n    k.run(1)\n")
    with pytest.raises(UnsupportedError, match="nothing launches"):
        read_wrapper("k = async_compile.triton('k', '''@triton_heuristics.pointwise()\ndef k(): pass''')\n")


def test_a_choice_that_is_not_there() -> None:
    x = torch.randint(-5, 5, (40, 64), dtype=torch.int8)
    with pytest.raises(Exception, match="none of"):
        lower_for_gpu(lambda a: torch.ops.torchqx.int8_matmul(a, a), (x,), choose=lambda choice: False)
