"""`check` accepts what quantizing makes, whatever the settings, and nothing that was bent."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from torchqx.attribute_text import encode_quantizer
from torchqx.errors import CheckpointError
from torchqx.layouts import WeightLayout
from torchqx.quantize_weight import SiteParameters, quantize_weight
from torchqx.quantizers import AffineQuantizer
from torchqx.storage import QuantizedWeight
from torchqx.validate import check

SHAPES = {WeightLayout.OUT_IN: (7, 12), WeightLayout.IN_OUT: (12, 7), WeightLayout.CONV: (7, 3, 2, 2),
          WeightLayout.EXPERTS_OUT_IN: (3, 7, 12), WeightLayout.EXPERTS_IN_OUT: (3, 12, 7)}


def made(layout: WeightLayout = WeightLayout.OUT_IN, bits: int = 8, symmetric: bool = True,
         granularity: str = "channel", static: bool = True, transformed: bool = True,
         dtype: torch.dtype = torch.float32) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(0)
    group = 4 if granularity == "group" else None
    activation = AffineQuantizer(bits) if static else AffineQuantizer(bits, granularity="token", dynamic=True)
    parameters = SiteParameters(
        activation, AffineQuantizer(bits, symmetric, granularity, group, signed=True),
        torch.randn(12, generator=generator) if transformed else None,
        torch.rand(12, generator=generator) + 0.5 if transformed else None,
        torch.tensor(-3.0) if static else None, torch.tensor(5.0) if static else None)
    return quantize_weight(torch.randn(SHAPES[layout], generator=generator).to(dtype), layout, "site", parameters)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(SHAPES)), st.sampled_from([4, 6, 8]), st.booleans(),
       st.sampled_from(["tensor", "channel", "group"]), st.booleans(), st.booleans(),
       st.sampled_from([torch.float32, torch.bfloat16]))
def test_what_quantizing_makes_is_accepted(layout: WeightLayout, bits: int, symmetric: bool, granularity: str,
                                           static: bool, transformed: bool, dtype: torch.dtype) -> None:
    check(made(layout, bits, symmetric, granularity, static, transformed, dtype))


@pytest.mark.parametrize(("component", "value"), [
    ("qdata", torch.zeros(7, 11, dtype=torch.int8)), ("qdata", torch.zeros(7, 12, dtype=torch.uint8)),
    ("scale", torch.ones(7, 1)), ("scale", -torch.ones(7)), ("scale", torch.ones(7).double()),
    ("zero_point", None), ("zero_point", torch.full((7,), 200, dtype=torch.int32)),
    ("act_pre_scale", torch.zeros(12)), ("act_pre_scale", torch.ones(7)),
    ("scale_and_zero", torch.ones(12)), ("scale_and_zero", torch.full((19,), float("nan"))),
    ("per_tensor_scale", None), ("per_tensor_scale", torch.tensor([0.0, 3.0])),
    ("per_tensor_scale", torch.tensor([1.0, 256.0])), ("per_tensor_scale", torch.ones(3)),
    ("matrix_layout", "conv"), ("matrix_layout", None), ("plan", "{}"), ("plan", None),
    ("weight_quantizer", encode_quantizer(AffineQuantizer())),
    ("weight_quantizer", '{"granularity":"none","dynamic":true,"signed":true}'),
    ("weight_quantizer", encode_quantizer(AffineQuantizer(signed=True, granularity="group", group_size=5))),
    ("activation_quantizer", encode_quantizer(AffineQuantizer(dynamic=True))),
    ("act_pre_scale", torch.ones(3, 12)), ("act_pre_scale", torch.full((2, 12), float("inf"))),
    ("rotation", '{"block":8}'), ("rotation", '{"block":4,"seed":0.5}'), ("rotation", "x"),
    ("output_rotation", '{"block":4}'), ("output_rotation", '{"block":true}'),
    ("activation_quantizer", '{"bits":8.0}'), ("activation_quantizer", "null"), ("activation_quantizer", "{"),
])
def test_a_bent_component_is_refused(component: str, value: Tensor | str | None) -> None:
    weight = made(symmetric=False)
    setattr(weight, component, value)
    with pytest.raises(CheckpointError):
        check(weight)


def test_rotations_that_fit() -> None:
    weight = made()
    weight.rotation, weight.output_rotation = '{"block":12,"seed":3}', '{"block":1}'
    weight.act_pre_scale = torch.stack([torch.ones(12), -torch.ones(12)])
    check(weight)


def test_a_component_that_its_quantizer_has_no_use_for() -> None:
    weight = made(static=False)
    weight.per_tensor_scale = torch.tensor([1.0, 0.0])
    with pytest.raises(CheckpointError, match="no use for it"):
        check(weight)


def test_without_values_only_shapes_are_looked_at() -> None:
    weight = made()
    names, attributes = weight.__tensor_flatten__()
    meta = {n: getattr(weight, n).to("meta") for n in names}
    check(QuantizedWeight.__tensor_unflatten__(meta, attributes, weight.shape, weight.stride()))
    with FakeTensorMode() as mode:
        fake = {n: mode.from_tensor(getattr(weight, n)) for n in names}
        check(QuantizedWeight.__tensor_unflatten__(fake, attributes, weight.shape, weight.stride()))
    meta["scale"] = meta["scale"][:3]
    with pytest.raises(CheckpointError, match="scale"):
        check(QuantizedWeight.__tensor_unflatten__(meta, attributes, weight.shape, weight.stride()))
