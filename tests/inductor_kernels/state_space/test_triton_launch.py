"""How the operators get to their Triton kernels, and when they do not."""

import contextlib

import pytest
import torch

from tests.inductor_kernels.state_space.helpers import double
from tests.inductor_kernels.state_space.interpreted import lower
from tests.inductor_kernels.state_update.test_state_update import mamba
from torchqx.errors import ShapeError
from torchqx.inductor_kernels.state_space import triton_launch
from torchqx.inductor_kernels.state_update import gpu, state_update_naive

op = torch.ops.torchqx.state_update


def test_float64_keeps_the_operator():
    program, _ = lower(op, double(mamba(1, 20, 16)))
    assert program.extern_calls == ("torch.ops.torchqx.state_update.default",)
    assert not program.kernels


def test_compiled_for_the_cpu_the_operator_stays():
    given = mamba(1, 20, 16)
    again = given | {"state": given["state"].clone()}
    graphs = []

    def keep(gm, _):
        graphs.append([str(n.target) for n in gm.graph.nodes if n.op == "call_function"])
        return gm.forward

    backend = torch._dynamo.backends.common.aot_autograd(fw_compiler=keep)
    y = torch.compile(lambda **operands: op(**operands), backend=backend)(**given)
    assert any("state_update" in name or "auto_functionalized" in name for name in graphs[0])
    assert torch.equal(y, op(**again))
    assert torch.equal(given["state"], again["state"])


def test_called_on_a_device(monkeypatch: pytest.MonkeyPatch):
    """Arguments come by name with their defaults; float64 goes to the formula."""
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    seen = []
    given = mamba(1, 20, 16)
    called = triton_launch.on_device(op.default, state_update_naive, seen.append)
    called(*(given[name] for name in ("state", "x", "dt", "A", "B", "C")), D=given["D"], dt_softplus=True)
    assert seen[0]["D"] is given["D"]
    assert (seen[0]["z"], seen[0]["out_scale"], seen[0]["out_dtype"]) == (None, None, torch.float32)
    exact, again = double(given), double(given)
    assert torch.equal(called(**exact), state_update_naive(**again))
    assert len(seen) == 1


def test_operands_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match="dt has the shape"):
        gpu.state_update(triton_launch.named(op.default, (), mamba(1, 20, 16) | {"dt": torch.zeros(1, 19)}))
