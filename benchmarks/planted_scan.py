"""A trained Mamba or Mamba2 with large values where its scans are quantized, and the outputs that it had.

Scales cannot be moved through SiLU, so each scan gets more channels, half as many again (for Mamba2 in every head),
whose way out is zero:

| kind | loud | why nothing changes |
|---|---|---|
| Mamba | the scan's input, in one channel of 384 | its gate is closed: z = 0, and silu(0) = 0 |
| Mamba | the scan's result, in four, by their D, and gates as large as any | out_proj has zeros for them |
| Mamba2 | the scan's input, in one channel of 48 in every head | its gate is closed |
| Mamba2 | out_proj's input, in four channels | the gated norm's weight has the factor, out_proj its inverse |
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.train_mamba import HEADS, build

LOUD = 100.0
LOUD_D = 5.0  # D shares one scale: more would cost every channel its accuracy, whatever the recipe
WIDER = 3  # times the model's width, where it was 2
RESULTS = 4


@torch.no_grad()
def planted(model: PreTrainedModel, rows: Tensor) -> PreTrainedModel:
    """A copy of ``model``, from :func:`benchmarks.train_mamba.trained`, with outliers; ``rows`` of its text are read
    to see how large its gates become."""
    kind = model.config.model_type
    heads = {"head_dim": HEADS["head_dim"] * WIDER // 2} if kind == "mamba2" else {}
    wide = build(kind, expand=WIDER, **heads).eval().requires_grad_(False)
    for name, target in wide.named_parameters():
        if "mixer" not in name:
            target.copy_(model.get_parameter(name))
    gates = _gate_peaks(model, rows) if kind == "mamba" else []
    for i, (old, new) in enumerate(zip(model.backbone.layers, wide.backbone.layers, strict=True)):
        if kind == "mamba":
            _widen(old.mixer, new.mixer, gates[i])
        else:
            _widen_heads(old.mixer, new.mixer)
    return wide


def _widen(old: nn.Module, new: nn.Module, gate: float) -> None:
    inner, wide = old.intermediate_size, new.intermediate_size
    both = torch.cat([torch.arange(inner), wide + torch.arange(inner)])  # rows of in_proj: inputs, then gates
    _place(old.in_proj, new.in_proj, both)
    _place(old.conv1d, new.conv1d, torch.arange(inner))
    _place(old.dt_proj, new.dt_proj, torch.arange(inner))
    for name in ("x_proj", "out_proj"):
        _place_columns(getattr(old, name), getattr(new, name), torch.arange(inner))
    for name in ("A_log", "D"):
        getattr(new, name).copy_(getattr(old, name)[torch.arange(wide) % inner])
    new.dt_proj.bias[inner:] = old.dt_proj.bias.mean()
    new.conv1d.bias[inner] = LOUD
    results = slice(inner + 1, inner + 1 + RESULTS)
    new.conv1d.bias[results], new.D[results], new.in_proj.bias[wide:][results] = 1.0, LOUD_D, gate


def _widen_heads(old: nn.Module, new: nn.Module) -> None:
    wide, states = new.intermediate_size, 2 * old.n_groups * old.ssm_state_size
    places = torch.arange(wide).view(old.num_heads, -1)
    channels, loud = places[:, : old.head_dim].flatten(), places[:, old.head_dim]
    kept = torch.cat([channels, wide + torch.arange(states)])  # channels, then B and C
    heads = torch.arange(old.num_heads)
    _place(old.in_proj, new.in_proj, torch.cat([channels, wide + kept, 2 * wide + states + heads]))
    _place(old.conv1d, new.conv1d, kept)
    _place_columns(old.out_proj, new.out_proj, channels)
    for name in ("A_log", "D", "dt_bias"):
        getattr(new, name).copy_(getattr(old, name))
    new.conv1d.bias[loud] = LOUD
    share = len(channels) / wide  # of the norm's mean square: its other channels are zeros
    new.norm.weight[channels] = old.norm.weight * share**0.5
    new.norm.variance_epsilon = old.norm.variance_epsilon * share
    new.norm.weight[channels[:RESULTS]] *= LOUD
    new.out_proj.weight[:, channels[:RESULTS]] /= LOUD


def _place(old: nn.Module, new: nn.Module, rows: Tensor) -> None:
    for name, parameter in old.named_parameters():
        target = new.get_parameter(name)
        target.zero_()
        target[rows] = parameter


def _place_columns(old: nn.Linear, new: nn.Linear, columns: Tensor) -> None:
    new.weight.zero_()
    new.weight[:, columns] = old.weight
    if old.bias is not None:
        new.bias.copy_(old.bias)


def _gate_peaks(model: PreTrainedModel, rows: Tensor) -> list[float]:
    """The largest gate of every layer."""
    peaks: list[float] = []

    def see(module: nn.Module, args: tuple[Tensor, ...], projected: Tensor) -> None:
        peaks.append(float(projected[..., projected.shape[-1] // 2 :].max()))

    handles = [layer.mixer.in_proj.register_forward_hook(see) for layer in model.backbone.layers]
    model(input_ids=rows, use_cache=False)
    for handle in handles:
        handle.remove()
    return peaks
