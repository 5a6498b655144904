"""What acts along the sequence: attention, and the state-space operators in the shapes of Mamba-130M, Mamba2-130M."""

from functools import cache, partial

import torch
import torch.nn.functional as F

from benchmarks import state_space
from benchmarks.kernels.case import OURS, Arms, Case

ATTENTION = {"MiniLM": (1, 12, 12, 128, 32), "BERT": (1, 12, 12, 128, 64), "BERT, 8 rows": (8, 12, 12, 128, 64),
             "SmolLM2": (1, 9, 3, 512, 64), "BERT, long": (1, 12, 12, 2048, 64)}
STEPS = 512


def cases() -> list[Case]:
    """Attention bidirectional, or causal where keys are shared between heads; scans over 512 steps."""
    attentions = [Case("attention", f"{name} {' x '.join(map(str, shape))}", partial(attention, *shape))
                  for name, shape in ATTENTION.items()]
    scans = [Case(kernel, f"{STEPS} steps", partial(scan, kernel)) for kernel in ("scan", "scan mamba2", "conv")]
    return attentions + scans


def attention(batch: int, heads: int, kv_heads: int, length: int, width: int) -> Arms:
    """Ours, also with its result as codes, and torch's own, in bfloat16 and float32."""
    q = torch.randn(batch, length, heads, width).transpose(1, 2)
    k, v = (torch.randn(batch, length, kv_heads, width).transpose(1, 2) for _ in range(2))
    half = [t.bfloat16() for t in (q, k, v)]
    shared, scale = kv_heads < heads, width**-0.5
    mul, add = torch.tensor([30.0]), torch.tensor([128.0])
    op, torchs = torch.ops.torchqx.attention, partial(F.scaled_dot_product_attention, is_causal=shared,
                                                      enable_gqa=shared)
    return {OURS: lambda: op(*half, None, scale, shared, None, None, 0, 255),
            "torchqx u8": lambda: op(*half, None, scale, shared, mul, add, 0, 255),
            "torch bf16": lambda: torchs(*half), "torch fp32": lambda: torchs(q, k, v)}


def scan(kernel: str) -> Arms:
    """Ours in float32 and int8, and transformers' own function."""
    calls = _prefill()
    return {OURS: calls[kernel], "torchqx int8": calls[f"{kernel} int8"],
            "transformers": calls[f"{kernel} transformers"]}


@cache
def _prefill() -> Arms:
    return state_space.prefill(STEPS, theirs=True)
