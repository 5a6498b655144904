"""What the backend refuses before it looks at a graph."""

import pytest
import torch
import torch._inductor.config as inductor_config
from torch import nn

import torchqx
from tests.torchqx.small import Net, batch
from torchqx.errors import UnsupportedError


@pytest.mark.parametrize("converts", [False, True])
def test_weights_that_freezing_turned_into_constants(converts: bool):
    """They are no inputs then, and nothing could be quantized."""
    torch._dynamo.reset()
    model: nn.Module = Net().eval()
    with torch.no_grad(), inductor_config.patch(freezing=True), pytest.raises(UnsupportedError, match="freezing"):
        if converts:
            torchqx.quantize(model, torchqx.OutlierSuppressionPlusConfig(), [batch()])
        else:
            torch.compile(model, backend="torchqx")(batch())
    torch._dynamo.reset()
