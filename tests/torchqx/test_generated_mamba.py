"""What Inductor makes of a Mamba block: operators that hand codes to each other, and one kernel between blocks."""

import re

import pytest
import torch
from torch._inductor.utils import run_and_get_code

import torchqx
from tests.state_space_models import MODELS, prompt
from torchqx.inductor_kernels.int8_linear.cpu import is_supported

pytestmark = pytest.mark.skipif(not is_supported(torch.device("cpu")), reason="no int8 matmul kernel for this CPU")


@pytest.fixture(scope="module")
def calls() -> list[str]:
    """The lines of the generated code that call something, in order."""
    torch._dynamo.reset()
    tokens = {"input_ids": prompt(2, 16)["input_ids"], "use_cache": False}
    model = torchqx.quantize(MODELS["mamba"](), torchqx.QuambaConfig(), [tokens])
    with torch.no_grad():
        compiled = torch.compile(model.backbone, backend="torchqx", options={"cost_model": "int8"}, dynamic=False)
        _, (code,) = run_and_get_code(lambda: compiled(**tokens))
    lines = code[code.index("def call(") :].split("\n")
    return [line for line in lines if re.search(r"\bcpp_fused\w*\(|ops\.torchqx\.\w+\.default\(", line)]


def names(calls: list[str]) -> list[str]:
    return [re.search(r"torchqx\.(\w+)\.default\(|\b(cpp_fused)", call).group(1) or "kernel" for call in calls]


def test_between_two_norms_stand_operators_alone(calls: list[str]) -> None:
    """Norm, with the residual addition that the last matmul has done already, and quantizer are one kernel."""
    block = ["kernel", "int8_linear", "causal_conv1d", "int8_linear", "int8_linear", "selective_scan",
             "hadamard_quantize_static", "int8_linear"]
    assert names(calls) == [*block, *block, "kernel"]


def test_the_kernel_normalises_and_quantizes(calls: list[str]) -> None:
    fused = [call for call in calls if "cpp_fused" in call]
    assert all(re.search("mean.*pow.*rsqrt", call) for call in fused)
