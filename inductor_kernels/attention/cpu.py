"""The C++ kernel of ``torchqx::attention``: where it runs, and how it gets built."""

import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from torchqx.inductor_kernels.attention.schema import LIBRARY
from torchqx.inductor_kernels.cpu_build import build_at_first_call, has_compiler, load_operators
from torchqx.inductor_kernels.int8_linear.quantize import quantize_static

SOURCES = tuple(Path(__file__).with_name(name)
                for name in ("element.h", "product.h", "pack.h", "softmax.h", "problem.h", "worker.h", "op.cpp"))
FLAGS = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16")


@functools.cache
def is_supported(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the C++ kernel can run: float32 on a CPU with AVX512, bfloat16 with its bfloat16 products; a compiler."""
    features = {torch.float32: torch.cpu._is_avx512_supported, torch.bfloat16: torch.cpu._is_avx512_bf16_supported}
    return device.type == "cpu" and dtype in features and features[dtype]() and has_compiler()


def load() -> None:
    """Build (once per machine) and register the kernel.

    Raises:
        UnsupportedError: the compiler failed.
    """
    load_operators(SOURCES, FLAGS)


def attention_aten(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool,
                   out_mul: Tensor | None, out_add: Tensor | None, qmin: int, qmax: int) -> Tensor:
    """``torchqx::attention`` with the functions of torch, on any device."""
    grouped = q.shape[1] != k.shape[1]
    y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=grouped).transpose(1, 2)
    if out_mul is not None:
        y = quantize_static(y.flatten(2), out_mul, out_add, qmin, qmax).view(y.shape)
    return y.contiguous().transpose(1, 2)


first_call = build_at_first_call(LIBRARY, "attention", lambda q, *_: is_supported(q.device, q.dtype), load,
                                 attention_aten)
