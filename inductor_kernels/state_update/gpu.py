"""``torchqx::state_update`` on GPUs: one Triton kernel reads and writes the state once."""

from torch import Tensor

from torchqx.inductor_kernels.state_space.triton_launch import Given, blocks, launch, operand, per_scale, register
from torchqx.inductor_kernels.state_update.schema import LIBRARY, check
from torchqx.inductor_kernels.state_update.triton_kernel import update_rows

ELEMENTS = 2048  # of the state that a program holds: 16 per thread, so that many programs share the memory's bandwidth


def state_update(given: Given) -> Tensor:
    """y, and the new state in place; operands as in ``torchqx::state_update``."""
    check(**given)
    state, x, a, out_scale = given["state"], given["x"], given["A"], given["out_scale"]
    batch, *_, width, states = state.shape
    heads = state.shape[1] if state.dim() == 4 else 1
    groups = given["B"].shape[1] if state.dim() == 4 else 1
    rows = heads * width
    # Without heads, operands have one axis less.
    axis, no_head, no_group = ("h", {}, {}) if state.dim() == 4 else ("", {"h": 0}, {"g": 0})
    group_axis = "g" if axis else ""
    y = x.new_empty(x.shape, dtype=given["out_dtype"])
    if y.numel() == 0:
        return y
    arguments = {"state": state, "y": y, "out_scale": out_scale, "out_per": per_scale(out_scale, rows)}
    for name in ("x", "dt", "z"):
        arguments |= operand(given, name, f"b{axis}p", rows, **no_head)
    for name in ("B", "C"):
        arguments |= operand(given, name, f"b{group_axis}n", groups, **no_group)
    arguments |= operand(given, "A", f"{axis}pn", **no_head)
    for name in ("D", "dt_bias"):
        arguments |= operand(given, name, f"{axis}p", **no_head)
    columns = 1 << (states - 1).bit_length()
    block = max(1, min(ELEMENTS // columns, 1 << (width - 1).bit_length()))
    launch(update_rows, (blocks(width, block), heads, batch), arguments | {
        "heads": heads, "heads_per_group": heads // groups, "width": width, "states": states,
        "SOFTPLUS": given["dt_softplus"], "DECAY_PER_ROW": a.stride(-1) == 0, "ROWS": block, "STATES": columns})
    return y


register(LIBRARY, "state_update", state_update)
