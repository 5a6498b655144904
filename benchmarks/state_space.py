"""The state-space kernels beside transformers' own functions: interleaved, one thread, least processor time of a call.

    python -m benchmarks.state_space [--seconds 20] [--lengths 512 2048 16384]

Shapes of Mamba-130M (1536 channels, 16 states) and Mamba2-130M (24 heads of 64, 128 states), random operands laid out
as the models give them. Rates are state elements times steps per second (products, for the convolution); `limit` is
what the multipliers allow at the rate of the machine's float32 matmul: 7 operations per element in Mamba's inner loop
(the exponential takes 4 of them), 2 in Mamba2's. `growth` is the time per step over that of the first length.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers.models.mamba.modeling_mamba import (
    causal_conv1d_fn,
    causal_conv1d_update,
    mamba_selective_scan,
    mamba_selective_state_update,
)
from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan, mamba2_selective_state_update

import torchqx
from benchmarks.mamba_work import SCAN_OPERATIONS

CHANNELS, STATES, STEPS, TAPS = 1536, 16, 512, 4
HEADS, WIDTH, STATES2 = 24, 64, 128
CHUNK_OPERATIONS = 2
Arms = dict[str, Callable[[], object]]


def codes(t: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes of the same strides, and their scale."""
    scale = t.abs().max() / 127
    return (t / scale).round().to(torch.int8), scale.reshape(1)


def coded(operands: dict[str, Tensor], names: str) -> dict[str, Tensor]:
    """Operands with those of ``names`` as codes; A becomes the codes of its logarithm."""
    out = dict(operands)
    for name in names.split():
        out[name], out[f"{name}_scale"] = codes((-operands[name]).log() if name == "A" else operands[name])
    return out


def scan(steps: int) -> dict[str, Tensor]:
    """Operands of Mamba's scan: u and z with neighbouring channels, delta with neighbouring steps."""
    sequence = [torch.randn(1, steps, CHANNELS).transpose(1, 2) for _ in range(2)]
    grouped = [torch.randn(1, steps, STATES).transpose(1, 2) for _ in range(2)]
    return {"u": sequence[0], "delta": torch.randn(1, CHANNELS, steps) - 4, "A": -torch.arange(1.0, STATES + 1).repeat(
        CHANNELS, 1), "B": grouped[0], "C": grouped[1], "D": torch.ones(CHANNELS), "z": sequence[1],
        "delta_bias": torch.zeros(CHANNELS)}


def chunk(steps: int) -> dict[str, Tensor]:
    """Operands of Mamba2's scan."""
    return {"x": torch.randn(1, steps, HEADS, WIDTH), "dt": torch.randn(1, steps, HEADS) - 4,
            "A": -torch.linspace(1, 16, HEADS), "B": torch.randn(1, steps, 1, STATES2),
            "C": torch.randn(1, steps, 1, STATES2), "D": torch.ones(HEADS), "dt_bias": torch.zeros(HEADS)}


def prefill(steps: int, theirs: bool) -> Arms:
    """Whole sequences."""
    ops, one, two = torch.ops.torchqx, scan(steps), chunk(steps)
    one8, two8 = coded(one, "u delta A B C D z"), coded(two, "x dt A B C D")
    conv = {"x": one["u"], "weight": torch.randn(CHANNELS, TAPS), "bias": torch.randn(CHANNELS)}
    conv8 = coded(conv, "x weight")
    out = {"out_scale": torch.tensor([0.05]), "out_dtype": torch.int8}
    arms: Arms = {
        "scan": lambda: ops.selective_scan(**one, delta_softplus=True),
        "scan int8": lambda: ops.selective_scan(**one8, **out, delta_softplus=True),
        "scan mamba2": lambda: ops.chunk_scan(**two, dt_softplus=True),
        "scan mamba2 int8": lambda: ops.chunk_scan(**two8, **out, dt_softplus=True),
        "conv": lambda: ops.causal_conv1d(**conv, activation="silu"),
        "conv int8": lambda: ops.causal_conv1d(**conv8, **out, activation="silu"),
    }
    if theirs:
        named = {name: t for name, t in two.items() if name != "x"}
        arms |= {
            "scan transformers": lambda: mamba_selective_scan(one["u"], one["delta"], *(one[n] for n in "ABCDz"),
                                                              one["delta_bias"], True, True),
            "scan mamba2 transformers": lambda: mamba2_chunk_scan(two["x"], **named, chunk_size=256, dt_softplus=True,
                                                                  return_final_states=True),
            "conv transformers": lambda: causal_conv1d_fn(conv["x"], conv["weight"], conv["bias"], "silu"),
        }
    return arms


def decode() -> Arms:
    """One step of every kind."""
    one = {name: t[..., 0].contiguous() if t.dim() == 3 else t for name, t in scan(1).items()}
    one = {"x": one["u"], "dt": one["delta"], "dt_bias": one["delta_bias"], **{n: one[n] for n in "ABCDz"}}
    two = chunk(1)
    rows, expanded = two["x"][:, 0], {
        "dt": two["dt"][:, 0, :, None].expand(-1, -1, WIDTH), "B": two["B"][:, 0], "C": two["C"][:, 0],
        "A": two["A"][:, None, None].expand(-1, WIDTH, STATES2), "D": two["D"][:, None].expand(-1, WIDTH),
        "dt_bias": two["dt_bias"][:, None].expand(-1, WIDTH)}
    state, state2 = torch.zeros(1, CHANNELS, STATES), torch.zeros(1, HEADS, WIDTH, STATES2)
    x, conv_state = torch.randn(1, CHANNELS, 1), torch.zeros(1, CHANNELS, TAPS)
    weight, bias = torch.randn(CHANNELS, TAPS), torch.randn(CHANNELS)
    one8 = coded(one, "x dt A B C D z")
    theirs = {name: t for name, t in one.items() if name != "x"}
    return {
        "step": lambda: torchqx.selective_state_update(state, **one, dt_softplus=True),
        "step int8": lambda: torch.ops.torchqx.state_update(state, **one8, dt_softplus=True),
        "step transformers": lambda: mamba_selective_state_update(state, one["x"], **theirs, dt_softplus=True),
        "step mamba2": lambda: torchqx.selective_state_update(state2, rows, **expanded, dt_softplus=True),
        "step mamba2 transformers": lambda: mamba2_selective_state_update(state2, rows, **expanded, dt_softplus=True),
        "conv step": lambda: torchqx.causal_conv1d_update(x, conv_state, weight, bias, "silu"),
        "conv step transformers": lambda: causal_conv1d_update(x, conv_state, weight, bias, "silu"),
    }


def best_times(arms: Arms, seconds: float) -> dict[str, float]:
    """The shortest call of each, the arms taking turns; an arm that had its share of the time waits."""
    best, spent = dict.fromkeys(arms, float("inf")), dict.fromkeys(arms, 0.0)
    for call in arms.values():
        call()
    while waiting := [name for name in arms if spent[name] < seconds / len(arms)]:
        for name in waiting:
            start = time.thread_time()  # what other processes take does not count
            arms[name]()
            took = time.thread_time() - start
            best[name], spent[name] = min(best[name], took), spent[name] + took
    return best


def multiply_adds_per_second() -> float:
    """What the float32 matmul reaches."""
    a = torch.randn(256, 256)
    return 256**3 / best_times({"matmul": lambda: a @ a}, 1.0)["matmul"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 16384])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rate = multiply_adds_per_second()
    print(f"limit: {rate / SCAN_OPERATIONS / 1e9:.1f} G/s (scan), {rate / CHUNK_OPERATIONS / 1e9:.1f} G/s (mamba2)")
    first: dict[str, float] = {}
    with torch.inference_mode():
        for steps in arguments.lengths:
            for name, took in best_times(prefill(steps, steps == arguments.lengths[0]), arguments.seconds).items():
                elements = CHANNELS * steps * (TAPS if "conv" in name else STATES2 if "mamba2" in name else STATES)
                first.setdefault(name, took / steps)
                print(f"{steps:6d} steps  {name:26s} {took * 1e3:10.3f} ms  {elements / took / 1e9:6.2f} G/s  "
                      f"growth {took / steps / first[name]:.2f}", flush=True)
        for name, took in best_times(decode(), arguments.seconds).items():
            print(f"{'':12s}  {name:26s} {took * 1e6:10.1f} us", flush=True)


if __name__ == "__main__":
    main()
