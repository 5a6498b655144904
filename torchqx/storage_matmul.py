"""The quantized matmul in eager mode: what the compiled integer path computes, up to rounding, on float tensors."""

import torch
import torch.nn.functional as F
from torch import Tensor

from torchqx.errors import ShapeError
from torchqx.gradients import refuse_gradients
from torchqx.storage import QuantizedWeight
from torchqx.transforms import OutputRotation


def matmul_rows(x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
    """The quantized ``x Wᵀ + b`` for rows [..., K] -> [..., N], in the dtype of ``x``, or autocast's.

    Raises:
        ShapeError: the rows are not as long as the weight's.
    """
    if x.shape[-1] != weight.matrix_shape[-1]:
        raise ShapeError(f"rows of {x.shape[-1]} meet a weight of {weight.matrix_shape[-1]} columns",
                         where="QuantizedWeight", remedy="check the model's input.")
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    with torch.no_grad(), torch.autocast(device, enabled=False):
        y = F.linear(_fake_quantized(x, weight), weight.transformed_matrix(), weight.shift_bias)
        y = _turned_back(y, weight)
        y = (y if bias is None else y + bias.float()).to(dtype)
    return refuse_gradients((x, bias), y) if torch.is_grad_enabled() else y


def matmul_experts(x: Tensor, weight: QuantizedWeight, offsets: Tensor) -> Tensor:
    """The quantized product of rows [T, K], sorted by expert, with their experts' weights -> [T, N], in x's dtype.

    Args:
        offsets: where each expert's rows end, [E]; rows after the last end give zeros.
    """
    rows, matrices, shifted = _fake_quantized(x, weight), weight.transformed_matrix(), weight.shift_bias
    y, start = rows.new_zeros(rows.shape[0], matrices.shape[1]), 0
    for e, end in enumerate(offsets.tolist()):
        y[start:end] = F.linear(rows[start:end], matrices[e], None if shifted is None else shifted[e])
        start = end
    return _turned_back(y, weight).to(x.dtype)


def _fake_quantized(x: Tensor, weight: QuantizedWeight) -> Tensor:
    """Rows [..., K] as the integer matmul sees them, still in the transformed coordinates; float32."""
    x = weight.transform.activation(x.float())
    spec = weight.activation_spec
    if spec.dynamic:
        return spec.fake_quantize(x)
    codes = spec.quantize(x, weight.act_scale, weight.act_zero_point)
    return spec.dequantize(codes, weight.act_scale, weight.act_zero_point)


def _turned_back(y: Tensor, weight: QuantizedWeight) -> Tensor:
    return y if weight.output_hadamard is None else OutputRotation(weight.output_hadamard).result(y)
