"""The gradient of ``torchqx::chunk_scan`` for float operands; codes have none."""

from typing import Any

import torch
from torch import Tensor

from torchqx.errors import TrainingError
from torchqx.inductor_kernels.chunk_scan import cpu as _cpu  # noqa: F401  registers the operators

OPERANDS, SETTINGS, SCALES = 9, 3, 8


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    if any(scale is not None for scale in inputs[OPERANDS + SETTINGS : -1]):
        raise TrainingError("codes have no gradient", where="chunk_scan",
                            remedy="call it under torch.no_grad(), or train the float form.")
    ctx.save_for_backward(*inputs[:OPERANDS])
    ctx.settings = inputs[OPERANDS : OPERANDS + SETTINGS]


def backward(ctx: Any, grad_y: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
    operands = ctx.saved_tensors
    grads = iter(torch.ops.torchqx.chunk_scan_backward.default(grad_y, grad_last, *operands, *ctx.settings))
    return *(None if t is None else next(grads) for t in operands), *[None] * (SETTINGS + SCALES + 1)


torch.library.register_autograd("torchqx::chunk_scan", backward, setup_context=setup_context)
