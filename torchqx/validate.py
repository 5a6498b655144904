"""Whether a storage tensor's components fit together: asked of everything that comes out of a file."""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from torchqx.errors import CheckpointError
from torchqx.inductor_kernels.int8_linear.pack import PANEL, STEP
from torchqx.layouts import WeightLayout
from torchqx.plan import records_from_json
from torchqx.quantizers import AffineQuantizer
from torchqx.storage import QuantizedWeight

DIMENSIONS = {WeightLayout.OUT_IN: (2,), WeightLayout.IN_OUT: (2,), WeightLayout.CONV: (3, 4),
              WeightLayout.EXPERTS_OUT_IN: (3,), WeightLayout.EXPERTS_IN_OUT: (3,)}


def check(weight: QuantizedWeight) -> None:
    """Raise CheckpointError, naming the component, unless ``weight`` is one that quantizing could have made.

    Shapes, dtypes, quantizers and plan are always looked at; codes and scales only where there are values (neither on
    the meta device nor under FakeTensorMode).
    """
    matrix = _matrix_shape(weight)
    rows, columns = matrix[:-1], matrix[-1]
    spec, activation = weight.weight_spec, weight.activation_spec
    _check_quantizers(spec, activation, columns)
    groups = {"tensor": (1,), "channel": rows, "group": (*rows, columns // (spec.group_size or columns))}
    scales = groups[spec.granularity]
    form = matrix
    if weight.packed and len(matrix) == 2 and spec.symmetric and spec.group_size is None:
        form = (-(-rows[0] // PANEL), -(-columns // STEP), PANEL, STEP)
    _check_tensor(weight.qdata, "qdata", torch.int8, form, low=spec.qmin, high=spec.qmax)
    _check_tensor(weight.scale, "scale", torch.float32, scales, low=0.0, strictly=True)
    _present(weight.zero_point, "zero_point", not spec.symmetric)
    _present(weight.per_tensor_scale, "per_tensor_scale", not activation.dynamic)
    if weight.zero_point is not None:
        _check_tensor(weight.zero_point, "zero_point", torch.int32, scales, low=spec.qmin, high=spec.qmax)
    _check_rotations(weight, rows[-1], columns)
    if weight.act_pre_scale is not None:
        pair = weight.act_pre_scale
        _check_tensor(pair, "act_pre_scale", torch.float32, (2, columns) if pair.dim() == 2 else (columns,))
        _check_tensor(weight.smooth, "act_pre_scale", torch.float32, (columns,), low=0.0, strictly=True)
    if weight.scale_and_zero is not None:
        shape = (columns + torch.Size(rows).numel(),)
        _check_tensor(weight.scale_and_zero, "scale_and_zero", torch.float32, shape)
    if weight.per_tensor_scale is not None:
        both = weight.per_tensor_scale
        _check_tensor(both, "per_tensor_scale", torch.float32, (2,), low=0.0)
        _check_tensor(both[:1], "per_tensor_scale", torch.float32, (1,), low=0.0, strictly=True)
        _check_tensor(both[1:], "per_tensor_scale", torch.float32, (1,), low=activation.qmin, high=activation.qmax)
    if not isinstance(weight.plan, str):
        raise _damaged("the plan is no text")
    records_from_json(weight.plan)


def _matrix_shape(weight: QuantizedWeight) -> tuple[int, ...]:
    shape, layouts = weight.full_shape, [layout.value for layout in WeightLayout]
    if not weight.dtype.is_floating_point:
        raise _damaged(f"stands for a weight of {weight.dtype}")
    if weight.matrix_layout not in layouts:
        raise _damaged(f"unknown layout {weight.matrix_layout!r}")
    layout = WeightLayout(weight.matrix_layout)
    if tuple(shape) != tuple(weight.shape) or len(shape) not in DIMENSIONS[layout]:
        raise _damaged(f"shape {list(shape)} in layout {layout.value}")
    return weight.matrix_shape


def _check_quantizers(spec: AffineQuantizer, activation: AffineQuantizer, columns: int) -> None:
    for what, quantizer in (("weight_quantizer", spec), ("activation_quantizer", activation)):
        flags = quantizer.symmetric, quantizer.dynamic, quantizer.signed
        if type(quantizer.bits) is not int or any(type(flag) is not bool for flag in flags):
            raise _damaged(f"{what} has fields of wrong types")
        if quantizer.group_size is not None and columns % quantizer.group_size:
            raise _damaged(f"{what}: rows of {columns} do not split into groups of {quantizer.group_size}")
    if spec.dynamic or not spec.signed or spec.granularity in ("token", "none"):
        raise _damaged("weight_quantizer is none for weights")
    if activation.signed or activation.granularity == "channel" or activation.dynamic == (
            activation.granularity == "tensor"):
        raise _damaged("activation_quantizer is none for activations")


def _check_rotations(weight: QuantizedWeight, rows: int, columns: int) -> None:
    for rotation, length in ((weight.hadamard, columns), (weight.output_hadamard, rows)):
        if rotation is None:
            continue
        if type(rotation.block) is not int or type(rotation.seed) not in (int, type(None)) or length % rotation.block:
            raise _damaged(f"{rotation} does not fit rows of {length}")


def _present(tensor: Tensor | None, what: str, wanted: bool) -> None:
    if (tensor is not None) != wanted:
        raise _damaged(f"{what} is {'missing' if wanted else 'there, but its quantizer has no use for it'}")


def _check_tensor(tensor: Tensor, what: str, dtype: torch.dtype, shape: tuple[int, ...],
                  low: float = float("-inf"), high: float = float("inf"), strictly: bool = False) -> None:
    if tensor.dtype != dtype or tuple(tensor.shape) != tuple(shape):
        raise _damaged(f"{what} is {tensor.dtype} {list(tensor.shape)}, not {dtype} {list(shape)}")
    if tensor.device.type == "meta" or isinstance(tensor, FakeTensor) or not tensor.numel():
        return
    least, most = (float(bound) for bound in torch.aminmax(tensor.detach()))
    inside = low < least if strictly else low <= least
    if not (inside and most <= high and abs(least) < float("inf") and abs(most) < float("inf")):
        raise _damaged(f"{what} holds values outside its range, or NaN or Inf")


def _damaged(problem: str) -> CheckpointError:
    return CheckpointError(problem, where="QuantizedWeight", remedy="the checkpoint is damaged: copy or save it again.")
