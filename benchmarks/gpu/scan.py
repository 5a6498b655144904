"""Scans and single steps of state-space models: memory sets the pace, so codes are to save their bytes.

The arm "bf16" is the same operator on bfloat16 operands: PyTorch has none to compare with.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.case import OURS, Case
from benchmarks.gpu.place import Place
from benchmarks.gpu.timing import Calls
from torchqx.inductor_kernels import chunk_scan as _chunk_scan  # noqa: F401  registers the operator
from torchqx.inductor_kernels import selective_scan as _selective_scan  # noqa: F401
from torchqx.inductor_kernels import state_update as _state_update  # noqa: F401

SCALE, OUT_SCALE = 0.02, 0.5
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Work:
    """One operator: shapes of its operands and of y; floats beside them stay floats.

    Attributes:
        views: operand -> what the operator is given of it.
        state: the shape of what is read and written in place, or written, float32.
        passes: how often the state is moved.
    """

    what: str
    name: str
    size: str
    shapes: Shapes
    y: tuple[int, ...]
    state: tuple[int, ...]
    passes: int
    views: Mapping[str, Callable[[Tensor], Tensor]]

    def operands(self, device: torch.device, codes: bool) -> dict[str, Any]:
        """Arguments of the operator; the state of a step among them."""
        made: dict[str, Any] = {}
        for name, shape in self.shapes.items():
            t = torch.randint(-127, 128, shape, device=device, dtype=torch.int8)
            t = t if codes else (-(t * SCALE).exp() if name == "A" else t * SCALE).bfloat16()
            made[name] = self.views.get(name, lambda t: t)(t)
        if codes:
            made |= {f"{name}_scale": torch.tensor([SCALE], device=device) for name in self.shapes}
            made |= {"out_scale": torch.tensor([OUT_SCALE], device=device)}
        if self.passes == 2:
            made["state"] = torch.randn(self.state, device=device)
        return made

    def options(self, codes: bool) -> dict[str, Any]:
        softplus = "delta_softplus" if self.name == "selective_scan" else "dt_softplus"
        return {softplus: True, "out_dtype": torch.int8 if codes else torch.bfloat16}

    def moved(self) -> int:
        """Bytes, with codes."""
        return sum(_count(s) for s in (*self.shapes.values(), self.y)) + 4 * self.passes * _count(self.state)


def _count(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def _turned(t: Tensor) -> Tensor:
    return t.mT


def mamba_scan(batch: int, channels: int, steps: int, states: int) -> Work:
    """Mamba's prefill, with time before channels in memory, as a projection leaves it."""
    sequence, grouped = (batch, steps, channels), (batch, steps, states)
    return Work("selective scan", "selective_scan", f"{batch} x {channels} x {steps}, {states}",
                {"u": sequence, "delta": sequence, "A": (channels, states), "B": grouped, "C": grouped, "z": sequence},
                sequence, (batch, channels, states), 1, dict.fromkeys(("u", "delta", "B", "C", "z"), _turned))


def mamba2_scan(batch: int, steps: int, heads: int, width: int, states: int) -> Work:
    """Mamba2's prefill."""
    sequence, grouped = (batch, steps, heads, width), (batch, steps, 1, states)
    return Work("chunk scan", "chunk_scan", f"{batch} x {steps} x {heads} x {width}, {states}",
                {"x": sequence, "dt": (batch, steps, heads), "A": (heads,), "B": grouped, "C": grouped}, sequence,
                (batch, heads, width, states), 1, {})


def mamba2_step(batch: int, heads: int, width: int, states: int) -> Work:
    """Mamba2's decoding: the state is read and written."""
    rows, grouped = (batch, heads, width), (batch, 1, states)
    return Work("scan step", "state_update", f"{batch} x {heads} x {width}, {states}",
                {"x": rows, "dt": (batch, heads, 1), "A": (heads, 1, 1), "B": grouped, "C": grouped}, rows,
                (*rows, states), 2, {"dt": lambda t: t.expand(rows), "A": lambda t: t.expand(heads, width, states)})


def works(quick: bool) -> list[Work]:
    """Sizes of Mamba 130M and 2.8B, and of Mamba2 2.7B."""
    if quick:
        return [mamba_scan(2, 5, 7, 16), mamba2_scan(2, 7, 3, 5, 16), mamba2_step(2, 3, 5, 16)]
    return [mamba_scan(8, 5120, 2048, 16), mamba_scan(1, 1536, 2048, 16), mamba2_scan(8, 2048, 80, 64, 128),
            mamba2_step(64, 80, 64, 128), mamba2_step(1, 80, 64, 128)]


def compute(work: Work, codes: bool) -> Callable[..., Any]:
    """The operator as a function of :meth:`Work.operands`."""
    operator, options = getattr(torch.ops.torchqx, work.name), work.options(codes)
    return lambda **operands: operator(**operands, **options)


def cases(quick: bool) -> list[Case]:
    """Every operator at every size."""
    return [_case(work) for work in works(quick)]


def _case(work: Work) -> Case:
    def arms(place: Place) -> Mapping[str, Callable[[], Calls]]:
        def calls(codes: bool) -> Calls:
            compiled = place.compiled(compute(work, codes))
            return [partial(compiled, **work.operands(place.device, codes)) for _ in range(place.sets(work.moved()))]

        return {OURS: lambda: calls(True), "bf16": lambda: calls(False)}

    return Case(work.what, work.size, arms, moved=work.moved())
