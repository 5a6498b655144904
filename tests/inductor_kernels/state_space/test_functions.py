"""exp, softplus and SiLU inside the kernels, over their whole ranges; types that are read and written."""

import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from torchqx.inductor_kernels import causal_conv1d as _conv  # noqa: F401  registers the operator
from torchqx.inductor_kernels import selective_scan as _scan  # noqa: F401
from torchqx.inductor_kernels.state_space.build import is_supported

pytestmark = pytest.mark.skipif(not is_supported(torch.device("cpu")), reason="no C++ compiler")


def scan_one_step(delta, u, rate, state, softplus):
    """The state after one step from ``state`` with B = 1: exp(delta rate) state + delta u."""
    n = delta.numel()
    one = torch.ones(1, 1, 1)
    return torch.ops.torchqx.selective_scan(
        torch.full((1, n, 1), u), delta.reshape(1, n, 1), torch.full((n, 1), rate), one, one,
        initial_state=torch.full((1, n, 1), state), delta_softplus=softplus)[1].flatten()


def test_softplus_has_a_small_relative_error_everywhere():
    x = torch.cat([torch.linspace(-80, 90, 20001), torch.tensor([-1e-30, 0.0, 1e-30, 20.0, 1e4, 1e30])])
    y = scan_one_step(x, 1.0, 0.0, 0.0, True)
    exact = torch.log1p(torch.exp(-x.double().abs())) + x.double().clamp(min=0)
    assert ((y - exact).abs() / exact).max() < 4e-7


def test_exponential_over_its_whole_range():
    x = torch.linspace(-87, 88, 30001)
    y = scan_one_step(x, 0.0, 1.0, 1.0, False)
    exact = torch.exp(x.double())
    assert ((y - exact).abs() / exact / (1 + x.abs())).max() < 2e-7  # the product is rounded once, as in torch
    near = torch.linspace(-1e-3, 0, 1001)
    assert (scan_one_step(near, 0.0, 1.0, 1.0, False) - torch.exp(near.double())).abs().max() < 1e-7


def test_exponents_outside_the_range():
    x = torch.tensor([-1e30, -1000.0, 0.0, 1000.0, math.nan])
    y = scan_one_step(x, 0.0, 1.0, 1.0, False)
    assert y[:2].max() < 2e-38
    assert y[2] == 1
    assert y[3] > 1e38
    assert y[4].isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_silu_and_the_types_read_and_written(dtype):
    x = torch.cat([torch.linspace(-30, 30, 4001), torch.tensor([-1e4, -100.0, 0.0, 6e-8, -3e-6, 1e-4, 100.0, 6e4])])
    x = x.to(dtype).reshape(1, -1, 1)
    weight = torch.ones(x.shape[1], 1)
    y = torch.ops.torchqx.causal_conv1d(x, weight, activation="silu", out_dtype=torch.float32)
    exact = F.silu(x.double())
    assert ((y - exact).abs() <= 1e-6 * exact.abs() + 1e-33).all()
    same = torch.ops.torchqx.causal_conv1d(x, weight, out_dtype=dtype)
    assert torch.equal(same, x)
    rounded = torch.ops.torchqx.causal_conv1d(x.float() * 1.2345, weight, out_dtype=dtype)
    assert torch.equal(rounded, (x.float() * 1.2345).to(dtype))


def test_non_finite_values_pass():
    x = torch.tensor([math.nan, math.inf, -math.inf]).reshape(1, 3, 1)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        y = torch.ops.torchqx.causal_conv1d(x.to(dtype), torch.ones(3, 1), out_dtype=dtype).flatten()
        assert y[0].isnan()
        assert y[1:].tolist() == [math.inf, -math.inf]


PROGRAM = """
import torch
from torchqx.inductor_kernels.state_space import build
build.FLAGS = (*build.FLAGS, "-mno-avx512f")
from torchqx.inductor_kernels import causal_conv1d, chunk_scan, selective_scan, state_update
r = torch.randn
u, delta, A, B, C, s = r(2, 33, 70), r(2, 33, 70), -torch.rand(33, 17), r(2, 17, 70), r(2, 17, 70), r(2, 33, 17)
x, dt, rate, G, states = r(2, 40, 4, 18), r(2, 40, 4), -torch.rand(4), r(2, 40, 2, 17), r(2, 4, 18, 17)
row, w = r(2, 33), r(33, 4)
ops = torch.ops.torchqx
def run(t, out):
    state = t(s).clone()
    half = t(u).half().to(t(u).dtype)
    return [*ops.selective_scan(t(u), t(delta), t(A), t(B), t(C), z=half, delta_softplus=True, out_dtype=out),
            *ops.chunk_scan(t(x), t(dt), t(rate), t(G), t(G), initial_states=t(states), dt_softplus=True,
                            out_dtype=out),
            ops.state_update(state, t(row), t(row), t(A), t(B)[..., 0], t(C)[..., 0], dt_softplus=True, out_dtype=out),
            state, ops.causal_conv1d(t(u), t(w), activation="silu", out_dtype=out)]
for y, exact in zip(run(lambda t: t, torch.float32), run(lambda t: t.double(), torch.float64), strict=True):
    assert (y - exact).abs().max() <= 1e-5 * exact.abs().max(), (y - exact).abs().max()
"""


@pytest.mark.slow
def test_the_form_for_other_processors():
    """Compiled without AVX-512, the same sources give the same results."""
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, env=os.environ)
