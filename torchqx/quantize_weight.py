"""A float parameter and its site's solution -> the storage tensor."""

from dataclasses import dataclass

import torch
from torch import Tensor

from torchqx.errors import NonFiniteError
from torchqx.inductor_kernels.int8_linear.pack import pack_int8_weight
from torchqx.layouts import WeightLayout
from torchqx.quantizers import AffineQuantizer
from torchqx.storage import QuantizedWeight, encode_quantizer
from torchqx.transforms import ShiftScale


@dataclass(frozen=True, eq=False)
class SiteParameters:
    """What was solved for a site: shared by every weight that reads its activation.

    Attributes:
        shift, scale: z and s, float32 [K], or None.
        act_low, act_high: range of the transformed activation, 0-dim; None for a dynamic quantizer.
    """

    activation: AffineQuantizer
    weight: AffineQuantizer
    shift: Tensor | None = None
    scale: Tensor | None = None
    act_low: Tensor | None = None
    act_high: Tensor | None = None

    @property
    def transform(self) -> ShiftScale:
        return ShiftScale(self.shift, self.scale)


@torch.no_grad()
def quantize_weight(parameter: Tensor, layout: WeightLayout, site: str, parameters: SiteParameters,
                    plan: str = "[]") -> QuantizedWeight:
    """Quantize ``parameter`` for ``site``. Raises NonFiniteError for a weight with NaN or Inf."""
    matrix = layout.to_matrix(parameter.detach()).float()
    if not torch.isfinite(matrix.sum()):
        raise NonFiniteError("the weight holds NaN or Inf", where=site, remedy="repair the checkpoint.")
    transformed, shift_bias = parameters.transform.weight(matrix), parameters.transform.bias(matrix, None)
    spec = parameters.weight
    scale, zero_point = spec.parameters(*spec.range_of(transformed))
    qdata = spec.quantize(transformed, scale, zero_point).contiguous()
    if qdata.device.type == "cpu" and qdata.dim() == 2 and spec.symmetric and spec.group_size is None:
        qdata = pack_int8_weight(qdata)
    per_row = scale.reshape(1) if spec.granularity == "tensor" else scale.squeeze(-1)
    static = None
    if parameters.act_low is not None:
        act_scale, act_zero = parameters.activation.parameters(parameters.act_low, parameters.act_high)
        static = torch.stack([act_scale.reshape(()), act_zero.reshape(()).float()])
    stash = None if shift_bias is None else torch.cat([parameters.shift.float(), shift_bias.reshape(-1)])
    return QuantizedWeight(
        qdata, per_row.contiguous(), list(parameter.shape), parameter.dtype, layout.value,
        encode_quantizer(spec), encode_quantizer(parameters.activation), plan,
        zero_point=None if spec.symmetric else zero_point.reshape(per_row.shape),
        act_pre_scale=None if parameters.scale is None else 1.0 / parameters.scale.float(),
        scale_and_zero=stash, per_tensor_scale=static)
