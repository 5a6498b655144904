"""``torchqx::chunk_scan`` on GPUs: one Triton kernel, in chunks on the tensor cores.

Products of float32 operands are float32 products, in parts where tensor cores have none. Narrower operands and codes
are multiplied as TF32, which holds all their digits.
"""

import math

import torch
from torch import Tensor

from torchqx.inductor_kernels.chunk_scan.schema import LIBRARY, check
from torchqx.inductor_kernels.chunk_scan.triton_kernel import scan_head
from torchqx.inductor_kernels.state_space.triton_launch import Given, blocks, launch, operand, per_scale, register

STEPS, WIDTH = 16, 32  # of a chunk; rows of a program's state
WARPS, MOST_WARPS, PER_WARP = 4, 8, 1024  # elements of the state: 32 registers per thread
SMALLEST, STATES = 16, 32  # side of a matrix that tensor cores take; states of a warp, where there are many
STAGES = 3  # AMD's compiler spills scalars when it reads ahead


def chunk_scan(given: Given) -> tuple[Tensor, Tensor]:
    """y [B, L, H, P] and the last states [B, H, P, N]; operands as in ``torchqx::chunk_scan``."""
    check(**given)
    x, out_scale = given["x"], given["out_scale"]
    (batch, steps, heads, width), (groups, states) = x.shape, given["B"].shape[2:]
    y = x.new_empty(x.shape, dtype=given["out_dtype"])
    last = x.new_empty((batch, heads, width, states), dtype=torch.float32)
    if y.numel() == 0 and last.numel() == 0:
        return y, last
    arguments = {"y": y, "last": last, "out_scale": out_scale, "out_per": per_scale(out_scale, heads * width)}
    for name in ("x", "z"):
        arguments |= operand(given, name, "blhp", heads * width)
    for name in ("B", "C"):
        arguments |= operand(given, name, "blgn", groups)
    arguments |= operand(given, "dt", "blh", heads) | operand(given, "A", "h") | operand(given, "dt_bias", "h")
    per_row = given["D"] is None or given["D"].dim() == 2
    arguments |= operand(given, "D", "hp") if per_row else operand(given, "D", "h", p=0)
    arguments |= operand(given, "initial_states", "bhpn")
    columns = max(SMALLEST, 1 << (states - 1).bit_length())
    warps = max(WARPS, min(MOST_WARPS, columns // STATES))
    slices = min(warps, columns // SMALLEST)
    block = max(SMALLEST, min(WIDTH, warps * PER_WARP // columns, 1 << (width - 1).bit_length()))
    launch(scan_head, (blocks(width, block), heads, batch), arguments | {
        "steps": steps, "heads": heads, "heads_per_group": heads // groups, "width": width, "states": states,
        "DT_MIN": _limit(given["dt_min"]), "DT_MAX": _limit(given["dt_max"]), "SOFTPLUS": given["dt_softplus"],
        "WIDTH": block, "SLICES": slices, "STATES": columns // slices, "STEPS": STEPS,
        "PRECISION": _precision(x.dtype)}, num_warps=warps, num_stages=1 if torch.version.hip else STAGES)
    return y, last


def _limit(value: float | None) -> float | None:
    return None if value is None or math.isinf(value) else value


def _precision(dtype: torch.dtype) -> str:
    if torch.version.hip:
        return "ieee"
    return "tf32x3" if dtype == torch.float32 else "tf32"


register(LIBRARY, "chunk_scan", chunk_scan)
