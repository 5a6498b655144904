"""What Inductor makes of an encoder block: how many kernels, and what they do in one pass."""

import re

import pytest
import torch
import transformers
from torch import nn
from torch._inductor.utils import run_and_get_code

import torchqx
from torchqx.inductor_kernels.int8_linear.cpu import is_supported

pytestmark = pytest.mark.skipif(not is_supported(torch.device("cpu")), reason="no int8 matmul kernel for this CPU")

LAYERS = 2


def tokens() -> dict[str, torch.Tensor]:
    return {"inputs_embeds": torch.randn(2, 16, 64)}


@pytest.fixture(scope="module")
def code() -> str:
    torch.manual_seed(0)
    torch._dynamo.reset()
    config = transformers.BertConfig(vocab_size=64, hidden_size=64, num_hidden_layers=LAYERS, num_attention_heads=4,
                                     intermediate_size=128, max_position_embeddings=32)
    encoder: nn.Module = transformers.BertModel(config, add_pooling_layer=False).eval()
    recipe = torchqx.OutlierSuppressionPlusConfig(activation="static", shift=True, grid_steps=2, loss="linear",
                                                  quantize_head=True)
    torchqx.quantize(encoder, recipe, [tokens()])
    compiled = torch.compile(encoder, backend="torchqx", dynamic=False)
    inputs = tokens()
    with torch.no_grad():
        expected = encoder(**inputs)[0]
        result, sources = run_and_get_code(lambda: compiled(**inputs)[0])
    assert float((result - expected).norm() / expected.norm()) < 0.02
    assert len(sources) == 1
    return sources[0]


def body(code: str) -> str:
    """The function that calls the kernels."""
    return code[code.index("def call(") :]


def kernels(code: str) -> dict[str, str]:
    """C++ kernel -> its source."""
    parts = re.split(r"^(cpp_fused\w*) = async_compile", code, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_matmuls(code: str) -> None:
    """q, k and v are one; then the attention's output, and the two of the feed-forward part."""
    assert len(re.findall(r"torchqx\.int8_linear\.default\(", body(code))) == 4 * LAYERS


def test_attention_is_one_call(code: str) -> None:
    """It reads q, k and v where the matmul left them, and writes the codes that the next one reads."""
    calls = [c for c in body(code).split("\n") if "torchqx.attention.default(" in c]
    assert len(calls) == LAYERS
    assert all(c.count("reinterpret_tensor(") == 3 and "None, None, 0, 255)" not in c for c in calls)


def test_no_other_matmul(code: str) -> None:
    assert not re.search(r"extern_kernels\.\w+\(|aten\.(mm|addmm|bmm|_int_mm)\b", body(code))


def test_kernels_per_block(code: str) -> None:
    """Norm with quantize, before the attention and before the feed-forward part: a kernel, but for the embeddings'
    norm, which is generated, as is the model's last."""
    assert body(code).count("torchqx.quantize_norm.default(") == 2 * LAYERS - 1
    calls = re.findall(r"\b(cpp_fused\w*)\(", body(code))
    assert len(calls) == 2, calls


def test_norm_shift_scale_and_quantize_are_one_kernel(code: str) -> None:
    quantizing = [source for source in kernels(code).values() if "uint8" in source or "unsigned char" in source]
    assert quantizing
    assert all("sqrt" in source for source in quantizing)


def test_the_feed_forward_part_stays_in_integers(code: str) -> None:
    """The first matmul applies GELU and writes the codes that the second one reads."""
    calls = [c for c in body(code).split("\n") if "torchqx.int8_linear.default(" in c]
    assert sum("'gelu'" in c for c in calls) == LAYERS
    assert not any("gelu" in name for name in kernels(code))
