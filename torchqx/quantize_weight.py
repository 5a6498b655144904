"""A float parameter and its site's solution -> the storage tensor."""

from dataclasses import dataclass

import torch
from torch import Tensor

from torchqx.attribute_text import encode_quantizer, encode_rotation
from torchqx.errors import NonFiniteError
from torchqx.inductor_kernels.int8_linear.pack import pack_int8_weight
from torchqx.layouts import WeightLayout
from torchqx.quantizers import AffineQuantizer
from torchqx.rotations import Hadamard
from torchqx.storage import QuantizedWeight
from torchqx.transforms import Chain, OutputRotation, ShiftScale, rotated


@dataclass(frozen=True, eq=False)
class SiteParameters:
    """What was solved for a site: shared by every weight that reads its activation, but for the output's rotation.

        X~ = ((X / g) R - z) / s      W~ = (W diag(g) R) · s      b~ = b + (W diag(g) R) z

    Attributes:
        shift, scale: z and s, float32 [K], or None.
        act_low, act_high: range of the transformed activation, 0-dim; None for a dynamic quantizer.
        rotation, norm: R, and g, float32 [K]; None where there is none.
        output_rotation: of the matmul's result: the codes' rows are rotated too, and what reads them turns back.
        rotated_keys: whether queries and keys rotate in graphs that read the weight.
    """

    activation: AffineQuantizer
    weight: AffineQuantizer
    shift: Tensor | None = None
    scale: Tensor | None = None
    act_low: Tensor | None = None
    act_high: Tensor | None = None
    rotation: Hadamard | None = None
    norm: Tensor | None = None
    output_rotation: Hadamard | None = None
    rotated_keys: bool = False

    def transform(self, columns: int) -> Chain:
        """The map on rows of ``columns`` elements, and what it does to weights and biases."""
        return Chain((*rotated(self.norm, self.rotation, columns).parts, ShiftScale(self.shift, self.scale)))


@torch.no_grad()
def quantize_weight(parameter: Tensor, layout: WeightLayout, site: str, parameters: SiteParameters,
                    plan: str = "[]") -> QuantizedWeight:
    """Quantize ``parameter`` for ``site``. Raises NonFiniteError for a weight with NaN or Inf."""
    matrix = layout.to_matrix(parameter.detach()).float()
    if not torch.isfinite(matrix.sum()):
        raise NonFiniteError("the weight holds NaN or Inf", where=site, remedy="repair the checkpoint.")
    transform = parameters.transform(matrix.shape[-1])
    if parameters.output_rotation is not None:
        matrix = OutputRotation(parameters.output_rotation).weight(matrix)
    transformed, shift_bias = transform.weight(matrix), transform.bias(matrix, None)
    spec = parameters.weight
    scale, zero_point = spec.parameters(*spec.range_of(transformed))
    qdata = spec.quantize(transformed, scale, zero_point).contiguous()
    integer = parameters.activation.granularity != "none"  # the packed order is the integer kernel's
    if integer and qdata.device.type == "cpu" and qdata.dim() == 2 and spec.symmetric and spec.group_size is None:
        qdata = pack_int8_weight(qdata)
    per_row = scale.reshape(1) if spec.granularity == "tensor" else scale.squeeze(-1)
    static = None
    if parameters.act_low is not None:
        act_scale, act_zero = parameters.activation.parameters(parameters.act_low, parameters.act_high)
        static = torch.stack([act_scale.reshape(()), act_zero.reshape(()).float()])
    stash = None if shift_bias is None else torch.cat([parameters.shift.float(), shift_bias.reshape(-1)])
    smooth = None if parameters.scale is None else 1.0 / parameters.scale.float()
    if parameters.norm is not None:
        norm = parameters.norm.detach().float()
        smooth = torch.stack([torch.ones_like(norm) if smooth is None else smooth, norm])
    return QuantizedWeight(
        qdata, per_row.contiguous(), list(parameter.shape), parameter.dtype, layout.value,
        encode_quantizer(spec), encode_quantizer(parameters.activation), plan,
        zero_point=None if spec.symmetric else zero_point.reshape(per_row.shape),
        act_pre_scale=smooth, scale_and_zero=stash, per_tensor_scale=static,
        rotation=encode_rotation(parameters.rotation), output_rotation=encode_rotation(parameters.output_rotation),
        rotated_keys=parameters.rotated_keys)
