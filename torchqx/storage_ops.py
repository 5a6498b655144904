"""What eager mode does with a storage tensor: weighted matmuls fake-quantize, everything else sees the float weight."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_map_only

from torchqx.errors import AlreadyQuantizedError
from torchqx.layouts import WeightLayout
from torchqx.rows import conv_result, conv_rows, left_result, left_rows
from torchqx.storage import QuantizedWeight
from torchqx.storage_matmul import matmul_rows

aten = torch.ops.aten


def _dequantized(func: Callable, args: tuple, kwargs: dict) -> Any:
    args, kwargs = tree_map_only(QuantizedWeight, QuantizedWeight.dequantize, (args, kwargs))
    return func(*args, **kwargs)


def _is(weight: Any, layout: WeightLayout) -> bool:
    return isinstance(weight, QuantizedWeight) and weight.matrix_layout == layout


@QuantizedWeight.implements_torch_function([F.linear])
def _linear(func: Callable, types: Any, args: tuple, kwargs: dict) -> Tensor:
    def call(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if _is(weight, WeightLayout.OUT_IN):
            return matmul_rows(x, weight, bias)
        return _dequantized(func, (x, weight, bias), {})

    return call(*args, **{{"input": "x"}.get(k, k): v for k, v in kwargs.items()})


@QuantizedWeight.implements_torch_function([torch.addmm, torch.Tensor.addmm])
def _addmm(func: Callable, types: Any, args: tuple, kwargs: dict) -> Tensor:
    if not kwargs and len(args) == 3 and _is(args[2], WeightLayout.IN_OUT):
        return matmul_rows(args[1], args[2], args[0])
    return _dequantized(func, args, kwargs)


@QuantizedWeight.implements_torch_function([torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.mm,
                                            torch.Tensor.__matmul__, torch.Tensor.__rmatmul__])
def _matmul(func: Callable, types: Any, args: tuple, kwargs: dict) -> Tensor:
    left, right = reversed(args) if func is torch.Tensor.__rmatmul__ else args
    if _is(right, WeightLayout.IN_OUT):
        return matmul_rows(left, right, None)
    if _is(left, WeightLayout.OUT_IN):
        return left_result(matmul_rows(left_rows(right), left, None))
    return _dequantized(torch.matmul, (left, right), {})


@QuantizedWeight.implements_torch_function([F.conv1d, F.conv2d])
def _conv(func: Callable, types: Any, args: tuple, kwargs: dict) -> Tensor:
    def call(x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **named: Any) -> Tensor:
        if _is(weight, WeightLayout.CONV):
            return conv_result(matmul_rows(conv_rows(x, tuple(weight.shape[2:])), weight, bias))
        return _dequantized(func, (x, weight, bias, *rest), named)

    return call(*args, **{{"input": "x"}.get(k, k): v for k, v in kwargs.items()})


@QuantizedWeight.implements(aten.copy_.default)
def _copy(func: Callable, types: Any, args: tuple, kwargs: dict) -> QuantizedWeight:
    """What ``load_state_dict`` does: the target takes over the source's content, whatever its quantizers and plan."""
    target, source = args[:2]
    if not (isinstance(target, QuantizedWeight) and isinstance(source, QuantizedWeight)
            and target.matrix_layout == source.matrix_layout and target.shape == source.shape):
        raise AlreadyQuantizedError("a quantized weight and another tensor do not fit into each other", where="copy_",
                                    remedy="load a checkpoint of the same kind, or use load_state_dict(assign=True).")
    for name in (*QuantizedWeight.tensor_data_names, *QuantizedWeight.optional_tensor_data_names):
        value = getattr(source, name)
        setattr(target, name, None if value is None else value.detach().to(target.device, copy=True))
    for name in ("weight_quantizer", "activation_quantizer", "rotation", "output_rotation", "rotated_keys",
                 "plan"):
        setattr(target, name, getattr(source, name))
    target.renew()
    return target


@QuantizedWeight.implements(aten._to_copy.default)
def _to_copy(func: Callable, types: Any, args: tuple, kwargs: dict) -> QuantizedWeight:
    """``.to(device)`` moves the components; ``.to(dtype)`` changes the dtype that the weight stands for."""
    weight, device = args[0], kwargs.get("device")
    names, attributes = weight.__tensor_flatten__()
    tensors = {name: getattr(weight, name).to(device=device) for name in names}
    moved = QuantizedWeight.__tensor_unflatten__(tensors, attributes, weight.shape, weight.stride())
    if kwargs.get("dtype") not in (None, weight.dtype):
        names = (*QuantizedWeight.tensor_attribute_names, *QuantizedWeight.optional_tensor_data_names,
                 *QuantizedWeight.optional_tensor_attribute_names)
        fields = {name: getattr(moved, name) for name in names}
        moved = QuantizedWeight(moved.qdata, moved.scale, **(fields | {"dtype": kwargs["dtype"]}))
    return return_and_correct_aliasing(func, args, kwargs, moved)
