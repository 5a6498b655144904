"""The gradient of ``torchqx::selective_scan`` for float operands; codes have none."""

from typing import Any

import torch
from torch import Tensor

from torchqx.errors import TrainingError
from torchqx.inductor_kernels.selective_scan import cpu as _cpu  # noqa: F401  registers the operators

OPERANDS, ARGUMENTS = 9, 19


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *operands, softplus = inputs[: OPERANDS + 1]
    if any(scale is not None for scale in inputs[OPERANDS + 1 : -1]):
        raise TrainingError("codes have no gradient", where="selective_scan",
                            remedy="call it under torch.no_grad(), or train the float form.")
    ctx.save_for_backward(*operands)
    ctx.softplus = softplus


def backward(ctx: Any, grad_y: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
    operands = ctx.saved_tensors
    grads = iter(torch.ops.torchqx.selective_scan_backward.default(grad_y, grad_last, *operands, ctx.softplus))
    return *(None if t is None else next(grads) for t in operands), *[None] * (ARGUMENTS - OPERANDS)


torch.library.register_autograd("torchqx::selective_scan", backward, setup_context=setup_context)
