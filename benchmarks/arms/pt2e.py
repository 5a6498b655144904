"""PT2E with X86InductorQuantizer: export, calibrate histograms, convert, and Inductor's oneDNN int8 linears."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

from benchmarks.arms.floating import frozen
from benchmarks.jobs import Job


def fp32(job: Job) -> Callable[[], Tensor]:
    return _quantized(job, mixed=False)


def bf16(job: Job) -> Callable[[], Tensor]:
    return _quantized(job, mixed=True)


@torch.no_grad()
def _quantized(job: Job, *, mixed: bool) -> Callable[[], Tensor]:
    exported = torch.export.export(job.module, (), job.inputs).module()
    quantizer = X86InductorQuantizer()
    quantizer.set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported, quantizer)
    for batch in job.cut_calibration():
        prepared(**batch)
    run = frozen(convert_pt2e(prepared), job.inputs)

    # The documented way to bf16 here is autocast: int8 matmuls with bf16 between them.
    def call() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext():
            return run()

    return call
