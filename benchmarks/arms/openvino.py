"""OpenVINO: the exported module, quantized after training by NNCF, run by the CPU plugin with its latency hint."""

from collections.abc import Callable

import nncf
import openvino as ov
import torch
from torch import Tensor

from benchmarks.jobs import Job


def int8(job: Job) -> Callable[[], Tensor]:
    """NNCF's post-training quantization with its settings for transformers; bf16 between the int8 matmuls."""
    model = _converted(job)
    batches = [{name: value.numpy() for name, value in batch.items()} for batch in job.cut_calibration()]
    quantized = nncf.quantize(model, nncf.Dataset(batches), model_type=nncf.ModelType.TRANSFORMER,
                              subset_size=len(batches))
    return _runner(quantized, job, "bf16")


def bf16(job: Job) -> Callable[[], Tensor]:
    """The float model, with matmuls in bfloat16."""
    return _runner(_converted(job), job, "bf16")


def _converted(job: Job) -> ov.Model:
    exported = torch.export.export(job.module, (), job.inputs)
    return ov.convert_model(exported)


def _runner(model: ov.Model, job: Job, precision: str) -> Callable[[], Tensor]:
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "INFERENCE_PRECISION_HINT": precision}
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
    inputs = {i: job.inputs[node.get_any_name()].numpy() for i, node in enumerate(request.model_inputs)}

    def call() -> Tensor:
        # Results are views of the request's memory: no copy is timed, and the next call overwrites them.
        return torch.from_numpy(request.infer(inputs, share_inputs=True, share_outputs=True)[0])

    return call
