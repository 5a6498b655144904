"""Rewrites scans, state updates and causal convolutions to read static int8 codes.

    before   selective_scan(u, delta, A, B, C, D, z, ...)
    after    selective_scan(quantize(u), quantize(delta), A', quantize(B), quantize(C), D', quantize(z), ...,
                            u_scale, delta_scale, B_scale, C_scale, z_scale)

    before   causal_conv1d_update(x, state, weight, bias, ...)
    after    y = causal_conv1d(quantize(x), weight codes, bias, quantize(state), ..., x_scale, weight_scale)
             state <- the last columns of [state, x]           the cache stays in float, as the model made it

A' and D' are the float values that the parameters' int8 codes stand for; they, the codes of the convolution's weight,
and the scales are inputs, made from the model's own tensors. Codes are uint8 with zero point 128.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from torchqx.fx_passes import derived as d
from torchqx.fx_passes.constants import expression
from torchqx.fx_passes.derived import Derived
from torchqx.fx_passes.erase import replace
from torchqx.fx_passes.lower import CODE_SCALES
from torchqx.fx_passes.sites import ScanSite
from torchqx.fx_passes.sites.scans import CONSTANTS, CONV, CONV_UPDATE, TENSORS, named_arguments
from torchqx.inductor_kernels.int8_linear.quantize import quantize_static
from torchqx.inductor_kernels.state_space.codes import LARGEST_CODE, ZERO_POINT
from torchqx.plan import SiteRecord, records_from_json
from torchqx.quantizers import AffineQuantizer
from torchqx.scan_constants import coded_constant
from torchqx.scan_recipe import CODE
from torchqx.storage import QuantizedWeight

SCAN_CODES = AffineQuantizer(symmetric=True)


@dataclass(frozen=True)
class ScanStructure:
    """What the code of a quantized site depends on.

    Attributes:
        tensors: role and number of scales, of every quantized tensor.
        x_shared: whether the matmul that reads the scan's x quantizes it alike.
    """

    tensors: tuple[tuple[str, int], ...]
    x_shared: bool = False


def carried_record(weight: QuantizedWeight, key: str) -> SiteRecord | None:
    """What ``weight``'s plan says of the site ``key``, or of one that has this key in a part of the model."""
    found = next((r for r in _state_space_records(weight.plan) if _same_place(r.key, key)), None)
    return found if found is not None and found.status == "quantized" else None


@lru_cache(maxsize=256)
def _state_space_records(plan: str) -> tuple[SiteRecord, ...]:
    return tuple(r for r in records_from_json(plan) if r.kind in ("scan", "conv") and r.scales)


def _same_place(a: str, b: str) -> bool:
    """Whether one key is the other's, seen from a part of the model."""
    long, short = (a, b) if len(a) >= len(b) else (b, a)
    return long == short or long.endswith(short if short.startswith(":") else f".{short}")


def structure_of(site: ScanSite, found: Mapping[Node, QuantizedWeight | None]) -> ScanStructure | None:
    """The structure that its carrier's plan gives the site; None where it stays float.

    A tensor without a scale stays float in a quantized site: some models gate inside the scan only while decoding.

    Args:
        found: a matmul's node -> its quantized weight, if it has one.
    """
    weight = None if site.carrier is None else found[site.carrier.node]
    record = None if weight is None else carried_record(weight, site.key)
    if record is None:
        return None
    reader = site.x_readers[0].ops[0] if len(site.x_readers) == 1 and len(site.x_readers[0].ops) == 1 else None
    shared = reader is not None and _quantizes_by(found[reader.node], record.scales.get("x", []))
    return ScanStructure(tuple((role, len(record.scales[role])) for role in site.tensors if role in record.scales),
                         shared)


def _quantizes_by(weight: QuantizedWeight | None, scales: list[float]) -> bool:
    """Whether the matmul's activation is quantized by the one scale of ``scales``, around the scan's zero point."""
    if weight is None or weight.device.type != "cpu" or weight.activation_spec != SCAN_CODES or len(scales) != 1:
        return False  # GPUs multiply other codes
    moved = (weight.smooth, weight.shift, weight.norm, weight.hadamard)
    return all(part is None for part in moved) and math.isclose(float(weight.act_scale), scales[0], rel_tol=1e-6)


# Builds of ``Derived`` that are equal share a tensor, whatever graphs they were made for; and they are kept as long as
# the model's weights, so they hold nothing of a graph.


@dataclass(frozen=True)
class _Scales:
    """The scales of tensor ``role`` of the site ``key``, as the carrier's plan has them."""

    key: str
    role: str

    @property
    def __name__(self) -> str:
        return f"{self.role}_scale"

    def __call__(self, weights: list[QuantizedWeight], _: list) -> Tensor:
        return torch.tensor(carried_record(weights[0], self.key).scales[self.role], device=weights[0].device)


@dataclass(frozen=True)
class _Multiplier(_Scales):
    """What its values are multiplied by, in ``shape``."""

    shape: tuple[int, ...]

    @property
    def __name__(self) -> str:
        return f"{self.role}_multiplier"

    def __call__(self, weights: list[QuantizedWeight], others: list) -> Tensor:
        return (1 / super().__call__(weights, others)).view(self.shape)


def zero(weights: list[QuantizedWeight], _: list) -> Tensor:
    """The zero point, [1]."""
    return torch.tensor([float(ZERO_POINT)], device=weights[0].device)


@dataclass(frozen=True)
class _Coded:
    """``make(role, value)`` of what ``module`` computes from parameters; ``code`` tells it from others."""

    role: str
    make: Callable[[str, Tensor], Tensor]
    code: str
    module: GraphModule = field(compare=False)

    @property
    def __name__(self) -> str:
        return f"coded_{self.role}"

    def __call__(self, weights: list[QuantizedWeight], others: list[Tensor]) -> Tensor:
        return self.make(self.role, self.module(*(p.detach() for p in others))).to(weights[0].device)


def _weight_scale(_: str, value: Tensor) -> Tensor:
    return CODE.parameters(*CODE.range_of(value))[0].reshape(1)


def _weight_codes(_: str, value: Tensor) -> Tensor:
    value = value.float()
    return CODE.quantize(value, *CODE.parameters(*CODE.range_of(value))).contiguous()


class ScanRewrite:
    """Quantizes one site in ``target``, the graph that :func:`quantize_graph` writes."""

    def __init__(self, target: Any, site: ScanSite, structure: ScanStructure) -> None:
        self.target, self.site, self.groups = target, site, dict(structure.tensors)
        self.x_shared = structure.x_shared

    def run(self) -> None:
        old = self.target.copies[self.site.node]
        given = named_arguments(old)
        with self.target.graph.inserting_before(old):
            new = self._conv(old.target, given) if self.site.kind == "conv" else self._scan(old.target, given)
        replace(old, new)
        self.target.copies[self.site.node] = new

    def _scan(self, function: Any, given: dict[str, Any]) -> Node:
        for role, name in TENSORS[function].items():
            if role in self.groups:
                given[name], given[f"{name}_scale"] = self._codes(role, given[name]), self._scale(role)
        for role, name in CONSTANTS[function].items():
            if role in self.site.constants:
                given[name] = self._constant(role, coded_constant)
        return self._call(function, given)

    def _call(self, function: Any, given: dict[str, Any]) -> Node:
        return self.target.graph.call_function(function, tuple(given[a.name] for a in function._schema.arguments))

    def _conv(self, function: Any, given: dict[str, Any]) -> Node:
        x, state = given["x"], given.pop("state", given.get("initial_states"))
        given |= {"x": self._codes("x", x), "x_scale": self._scale("x"), "initial_states": None}
        if state is not None:
            given["initial_states"] = self._codes("x", state)
        if "weight" in self.site.constants:
            given |= {"weight": self._constant("weight", _weight_codes),
                      "weight_scale": self._constant("weight", _weight_scale)}
        y = self._call(CONV, given)
        if function is CONV_UPDATE:
            self.target.graph.call_function(shift_in_, (state, x))
        return y

    def _codes(self, role: str, x: Node) -> Node:
        shape = self._scales_shape(role)
        weight, builds = self.site.carrier.weight, (_Multiplier(self.site.key, role, shape), zero)
        if role == "x" and self.x_shared:
            weight, builds = self.site.x_readers[0].ops[0].weight, (d.multiplier, d.addend)
        quantizer = (self.target.derived(Derived(build, (weight,))) for build in builds)
        codes = self.target.graph.call_function(
            quantize_static, (x, *quantizer, ZERO_POINT - LARGEST_CODE, ZERO_POINT + LARGEST_CODE))
        codes.meta[CODE_SCALES] = shape
        return codes

    def _scale(self, role: str) -> Node:
        return self.target.derived(Derived(_Scales(self.site.key, role), (self.site.carrier.weight,)))

    def _scales_shape(self, role: str) -> tuple[int, ...]:
        """Of a tensor's multipliers: with more than one, they belong to its last two dimensions."""
        if self.groups[role] == 1:
            return (1,)
        heads = self.site.tensors[role].meta["example_value"].shape[-2]
        return heads, self.groups[role] // heads

    def _constant(self, role: str, make: Callable[[str, Tensor], Tensor]) -> Node:
        sources, module = expression(self.site.constants[role])
        build = _Coded(role, make, str(module.graph), module)
        return self.target.derived(Derived(build, (self.site.carrier.weight,), sources))


def shift_in_(state: Tensor, x: Tensor) -> Tensor:
    """Move the steps x [B, D, L] into the state [B, D, S], in place: it holds the last S inputs."""
    return state.copy_(torch.cat([state, x.to(state.dtype)], -1)[..., -state.shape[-1]:])
