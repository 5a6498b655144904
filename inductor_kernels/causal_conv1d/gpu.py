"""``torchqx::causal_conv1d`` and its update on GPUs: one Triton kernel each, the update's with the shifted state."""

import torch
from torch import Tensor

from torchqx.inductor_kernels.causal_conv1d.schema import LIBRARY, check
from torchqx.inductor_kernels.causal_conv1d.triton_kernel import convolve
from torchqx.inductor_kernels.state_space.triton_launch import Given, blocks, launch, operand, per_scale, register

CHANNELS, STEPS = 64, 16  # of a program; an update of one step has no more


def causal_conv1d(given: Given) -> Tensor:
    """y [B, D, L]; operands as in ``torchqx::causal_conv1d``."""
    return _run({"state" if name == "initial_states" else name: v for name, v in given.items()}, update=False)


def causal_conv1d_update(given: Given) -> Tensor:
    """y [B, D, L], and the inputs shifted into the state."""
    return _run(given, update=True)


def _run(given: Given, update: bool) -> Tensor:
    check(**given)
    x, out_scale = given["x"], given["out_scale"]
    batch, channels, steps = x.shape
    y = torch.empty_strided(x.shape, (channels * steps, 1, channels), dtype=given["out_dtype"], device=x.device)
    if y.numel() == 0:
        return y
    state = given["state"]
    past = 0 if state is None else state.shape[2]
    if past == 0:
        given = dict(given) | {"state": None}
    at_once = 1 if update and steps == 1 else STEPS
    span = steps if update else at_once
    arguments = {"y": y, "out_scale": out_scale, "out_per": per_scale(out_scale, channels)}
    arguments |= operand(given, "x", "bdl", channels) | operand(given, "weight", "dk", channels)
    arguments |= operand(given, "bias", "d") | operand(given, "state", "bds")
    launch(convolve, (blocks(channels, CHANNELS), blocks(steps, span), batch), arguments | {
        "channels": channels, "steps": steps, "past": past, "span": span, "SILU": given["activation"] == "silu",
        "UPDATE": update and past > 0, "TAPS": given["weight"].shape[1], "CHANNELS": CHANNELS, "STEPS": at_once,
        "PAST": 1 << max(0, past - 1).bit_length()})
    return y


register(LIBRARY, "causal_conv1d", causal_conv1d)
register(LIBRARY, "causal_conv1d_update", causal_conv1d_update)
