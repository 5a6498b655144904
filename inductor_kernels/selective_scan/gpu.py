"""``torchqx::selective_scan`` on GPUs: one Triton kernel that reads and writes each operand once."""

import torch
from torch import Tensor

from torchqx.inductor_kernels.selective_scan.schema import LIBRARY, check
from torchqx.inductor_kernels.selective_scan.triton_kernel import scan_channels
from torchqx.inductor_kernels.state_space.triton_launch import Given, blocks, launch, operand, per_scale, register

LANES, STEPS = 32, 4  # channels of a program, one warp; steps that are read at once
MOST_STATES = 16  # per lane


def selective_scan(given: Given) -> tuple[Tensor, Tensor]:
    """y [B, D, L] and the last state [B, D, N]; operands as in ``torchqx::selective_scan``."""
    check(**given)
    u, out_scale = given["u"], given["out_scale"]
    (batch, channels, steps), states = u.shape, given["A"].shape[1]
    grouped = given["B"].dim() == 4
    groups = given["B"].shape[1] if grouped else 1
    y = torch.empty_strided(u.shape, (channels * steps, 1, channels), dtype=given["out_dtype"], device=u.device)
    last = u.new_empty((batch, channels, states), dtype=torch.float32)
    if y.numel() == 0 and last.numel() == 0:
        return y, last
    arguments = {"y": y, "last": last, "out_scale": out_scale, "out_per": per_scale(out_scale, channels)}
    for name in ("u", "delta", "z"):
        arguments |= operand(given, name, "bdl", channels)
    for name in ("B", "C"):
        rows = {name: _rows(given[name]), f"{name}_scale": given[f"{name}_scale"]}
        arguments |= operand(rows, name, "bgln", groups) if grouped else operand(rows, name, "bln", groups, g=0)
    arguments |= operand(given, "A", "dn") | operand(given, "D", "d") | operand(given, "delta_bias", "d")
    arguments |= operand(given, "initial_state", "bdn")
    padded = 1 << (states - 1).bit_length()
    block = max(1, min(LANES, LANES * MOST_STATES // padded))
    launch(scan_channels, (blocks(channels // groups, block), groups, batch), arguments | {
        "steps": steps, "channels": channels, "group_channels": channels // groups, "states": states,
        "SOFTPLUS": given["delta_softplus"], "CHANNELS": block, "STATES": padded, "STEPS": STEPS}, num_warps=1)
    return y, last


def _rows(t: Tensor) -> Tensor:
    """[..., N, L] as [..., L, N] with neighbouring states: every lane reads all of them, and they are few."""
    return t.mT if t.stride(-2) == 1 else t.mT.contiguous()


register(LIBRARY, "selective_scan", selective_scan)
