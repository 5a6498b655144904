"""torchao's int8 linears: activations quantized per token at run time, or per tensor with scales found beforehand."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchao.quantization import (
    FqnToConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8StaticActivationInt8WeightConfig,
    PerRow,
    PerTensor,
    quantize_,
)

from benchmarks.arms.floating import frozen
from benchmarks.jobs import Job


def dynamic_fp32(job: Job) -> Callable[[], Tensor]:
    return _dynamic(job, torch.float32)


def dynamic_bf16(job: Job) -> Callable[[], Tensor]:
    return _dynamic(job, torch.bfloat16)


def static_fp32(job: Job) -> Callable[[], Tensor]:
    return _static(job, torch.float32)


def static_bf16(job: Job) -> Callable[[], Tensor]:
    return _static(job, torch.bfloat16)


def _dynamic(job: Job, dtype: torch.dtype) -> Callable[[], Tensor]:
    module = job.module.to(dtype)
    quantize_(module, Int8DynamicActivationInt8WeightConfig())
    return frozen(module, job.inputs)


def _static(job: Job, dtype: torch.dtype) -> Callable[[], Tensor]:
    module = job.module.to(dtype)
    largest = _largest_inputs(module, job.calibration)
    configs = {
        name: Int8StaticActivationInt8WeightConfig(
            act_quant_scale=(peak / 127).to(dtype), granularity=[PerTensor(), PerRow()]
        )
        for name, peak in largest.items()
    }
    quantize_(module, FqnToConfig(configs), filter_fn=None)
    return frozen(module, job.inputs)


@torch.no_grad()
def _largest_inputs(module: nn.Module, batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The largest magnitude that each linear which runs sees at its input, by module name.

    Each has the input's rank with every size 1, which is the form that torchao asks of a per-tensor scale.
    """
    largest: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            peak = inputs[0].abs().amax(dim=tuple(range(inputs[0].ndim)), keepdim=True).float()
            largest[name] = torch.maximum(largest[name], peak) if name in largest else peak

        return hook

    handles = [
        layer.register_forward_pre_hook(watch(name))
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    for batch in batches:
        module(**batch)
    for handle in handles:
        handle.remove()
    return largest
