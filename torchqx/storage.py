"""The storage tensor: a weight as integers, with its site's transform and activation quantizer beside it.

It stands where the float ``nn.Parameter`` stood. In eager mode every op on it works: linear, addmm, matmul and
convolutions compute the fake-quantized result (``storage_ops``, ``storage_matmul``), anything else sees the dequantized
weight. Under the backend the matmuls run on the integers.
"""

from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torchao.utils import TorchAOBaseTensor

from torchqx.attribute_text import decode_quantizer, decode_rotation
from torchqx.errors import AlreadyQuantizedError
from torchqx.inductor_kernels.int8_linear.pack import unpack_int8_weight
from torchqx.layouts import WeightLayout
from torchqx.quantizers import AffineQuantizer
from torchqx.rotations import Hadamard
from torchqx.transforms import Chain, OutputRotation, ShiftScale, rotated

CHANGES = [0]
"""How often a storage tensor got new content, all of them together: while it stands, each holds what it held."""


class QuantizedWeight(TorchAOBaseTensor):
    """A quantized parameter. Its shape and dtype are the float parameter's.

    The components have the names that Hugging Face's torchao loader accepts; the properties give them meaning.

    | component | property | content |
    |---|---|---|
    | qdata | codes | int8 codes of the transformed weight's matrix, [N, K] or [E, N, K], or packed for the CPU |
    | scale | | float32 [N], [N, K/g], with a leading E for experts; [1] per tensor |
    | zero_point | | int32, as scale; only for asymmetric weights |
    | act_pre_scale | smooth, norm | 1/s, float32 [K]; or 1/s and a norm's weight g that was taken out, [2, K] |
    | scale_and_zero | shift, shift_bias | z, float32 [K], then W z, float32 [N] (E·N for experts) |
    | per_tensor_scale | act_scale, act_zero_point | static activation scale and zero point, float32 [2] |

    Args:
        weight_quantizer, activation_quantizer: as JSON text of their fields.
        matrix_layout: a :class:`WeightLayout` value.
        full_shape: the parameter's shape.
        plan: JSON list of site records that travel with this weight.
        rotation, output_rotation: of the activation and of the result, as JSON text, or empty.
        rotated_keys: whether queries and keys rotate in compiled graphs that read the weight, so that caches hold
            rotated keys.
    """

    tensor_data_names = ["qdata", "scale"]  # noqa: RUF012
    tensor_attribute_names = ["full_shape", "dtype", "matrix_layout", "weight_quantizer",  # noqa: RUF012
                              "activation_quantizer", "plan"]
    optional_tensor_data_names = ["zero_point", "act_pre_scale", "scale_and_zero", "per_tensor_scale"]  # noqa: RUF012
    optional_tensor_attribute_names = ["rotation", "output_rotation", "rotated_keys"]  # noqa: RUF012
    rotation = output_rotation = ""  # for what was pickled before there were rotations
    rotated_keys = False

    def __new__(cls, qdata: Tensor, scale: Tensor, full_shape: list[int], dtype: torch.dtype, *rest: Any,
                **named: Any) -> Self:
        return torch.Tensor._make_wrapper_subclass(cls, tuple(full_shape), dtype=dtype, device=qdata.device,
                                                   requires_grad=False)

    def __init__(self, qdata: Tensor, scale: Tensor, full_shape: list[int], dtype: torch.dtype, matrix_layout: str,
                 weight_quantizer: str, activation_quantizer: str, plan: str = "[]",
                 zero_point: Tensor | None = None, act_pre_scale: Tensor | None = None,
                 scale_and_zero: Tensor | None = None, per_tensor_scale: Tensor | None = None,
                 rotation: str = "", output_rotation: str = "", rotated_keys: bool = False) -> None:
        super().__init__()
        self.qdata = qdata
        self.scale, self.full_shape, self.matrix_layout = scale, list(full_shape), matrix_layout
        self.weight_quantizer, self.activation_quantizer, self.plan = weight_quantizer, activation_quantizer, plan
        self.zero_point, self.act_pre_scale = zero_point, act_pre_scale
        self.scale_and_zero, self.per_tensor_scale = scale_and_zero, per_tensor_scale
        self.rotation, self.output_rotation, self.rotated_keys = rotation, output_rotation, rotated_keys

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Integers have no gradient, so this stays False (loaders switch it on for all that is floating point)."""
        return self

    def __tensor_flatten__(self) -> tuple[list[str], dict[str, Any]]:
        # Dynamo's guards ask twice per weight and call, so the answer is kept until a component changes.
        if "_flat" not in self.__dict__:
            self.__dict__["_flat"] = super().__tensor_flatten__()
        return self.__dict__["_flat"]

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in COMPONENTS:
            self.renew()
        elif name == "__dict__":  # torch swaps two tensors
            CHANGES[0] += 1

    def renew(self) -> None:
        """Take the content for another than before."""
        for name in MADE:
            self.__dict__.pop(name, None)
        CHANGES[0] += 1

    @property
    def identity(self) -> Tensor:
        """An empty tensor that is this content's own: it goes along when torch swaps two tensors, and ends with it.

        Weak references point to it, since torch refuses to swap (``Module.to``) tensors that have some themselves.
        """
        if "_identity" not in self.__dict__:
            with torch.inference_mode(False):
                self.__dict__["_identity"] = torch.empty(0)
        return self.__dict__["_identity"]

    @classmethod
    def __metadata_guard__(cls, original: Any, other: Any) -> bool:
        # The compiled graph looks each weight up by identity when it is called, so nothing is to be guarded here.
        return True

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in cls._ATEN_OP_TABLE[cls]:
            return cls._ATEN_OP_TABLE[cls][func](func, types, args, kwargs)
        if func._schema.is_mutable:
            raise AlreadyQuantizedError(f"{func} would write into a quantized weight", where="QuantizedWeight",
                                        remedy="change the float weight and quantize again.")
        args, kwargs = tree_map_only(QuantizedWeight, QuantizedWeight.dequantize, (args, kwargs))
        return func(*args, **kwargs)

    @cached_property
    def weight_spec(self) -> AffineQuantizer:
        return decode_quantizer(self.weight_quantizer)

    @cached_property
    def activation_spec(self) -> AffineQuantizer:
        return decode_quantizer(self.activation_quantizer)

    @cached_property
    def hadamard(self) -> Hadamard | None:
        """R of the activation."""
        return decode_rotation(self.rotation)

    @cached_property
    def output_hadamard(self) -> Hadamard | None:
        """The rotation in which the matmul leaves its result, to be turned back."""
        return decode_rotation(self.output_rotation)

    @property
    def packed(self) -> bool:
        """Whether ``qdata`` holds the codes in the CPU kernel's order, as it does for what that kernel can multiply."""
        return self.qdata.dim() > len(self.matrix_shape)

    @property
    def codes(self) -> Tensor:
        """int8 codes, [N, K] or [E, N, K]; a new tensor where they are held packed."""
        return unpack_int8_weight(self.qdata, *self.matrix_shape) if self.packed else self.qdata

    def share_packed(self, part: Tensor) -> None:
        """Hold ``part``, equal to the packed ``qdata``, in its place: a view of several weights side by side."""
        self.__dict__["qdata"] = part  # the content is the same, so the identity stays

    @cached_property
    def matrix_shape(self) -> tuple[int, ...]:
        """Shape of the codes: [N, K] or [E, N, K]."""
        return tuple(WeightLayout(self.matrix_layout).to_matrix(torch.empty(self.full_shape, device="meta")).shape)

    @property
    def smooth(self) -> Tensor | None:
        """1/s, float32 [K]."""
        pair = self.act_pre_scale
        return pair if pair is None or pair.dim() == 1 else pair[0]

    @property
    def norm(self) -> Tensor | None:
        """g, float32 [K]."""
        return None if self.act_pre_scale is None or self.act_pre_scale.dim() == 1 else self.act_pre_scale[1]

    @property
    def shift(self) -> Tensor | None:
        return None if self.scale_and_zero is None else self.scale_and_zero[: self.matrix_shape[-1]]

    @property
    def shift_bias(self) -> Tensor | None:
        """W z, float32 [N] or [E, N], rotated as the results are."""
        if self.scale_and_zero is None:
            return None
        return self.scale_and_zero[self.matrix_shape[-1]:].reshape(self.matrix_shape[:-1])

    @property
    def act_scale(self) -> Tensor | None:
        return None if self.per_tensor_scale is None else self.per_tensor_scale[0]

    @property
    def act_zero_point(self) -> Tensor | None:
        return None if self.per_tensor_scale is None else self.per_tensor_scale[1].to(torch.int32)

    @property
    def transform(self) -> Chain:
        """The site's transform; the identity where it has none."""
        moved = ShiftScale(self.shift, None if self.smooth is None else 1.0 / self.smooth)
        return Chain((*rotated(self.norm, self.hadamard, self.matrix_shape[-1]).parts, moved))

    def transformed_matrix(self) -> Tensor:
        """The weight that the transformed activation meets, float32 [N, K] or [E, N, K]; rows may be rotated."""
        return dequantize_matrix(self.codes, self.scale, self.zero_point, self.weight_spec)

    def dequantize(self, output_dtype: torch.dtype | None = None) -> Tensor:
        """The float weight, in the parameter's shape, and its dtype or another: the transform is undone."""
        matrix = self.transform.original(self.transformed_matrix())
        if self.output_hadamard is not None:
            matrix = OutputRotation(self.output_hadamard).original(matrix)
        return WeightLayout(self.matrix_layout).from_matrix(matrix, self.shape).to(output_dtype or self.dtype)


MADE = ("_flat", "_identity", "weight_spec", "activation_spec", "hadamard", "output_hadamard")
"""What is kept of the content, once it was asked for."""

COMPONENTS = frozenset([*QuantizedWeight.tensor_data_names, *QuantizedWeight.optional_tensor_data_names,
                        *QuantizedWeight.tensor_attribute_names, *QuantizedWeight.optional_tensor_attribute_names])


def dequantize_matrix(qdata: Tensor, scale: Tensor, zero_point: Tensor | None, spec: AffineQuantizer) -> Tensor:
    """Codes [..., N, K] -> float32 [..., N, K], for every weight granularity."""
    scale = scale if spec.granularity in ("group", "tensor") else scale.unsqueeze(-1)
    if spec.group_size is not None:
        scale = scale.unsqueeze(-1)
    if zero_point is None:
        return (spec.grouped(qdata).to(scale.dtype) * scale).reshape(qdata.shape)
    return spec.dequantize(qdata, scale, zero_point.reshape(scale.shape))
