"""What the backend refuses before it looks at a graph."""

from collections.abc import Callable

import pytest
import torch
import torch._inductor.config as inductor_config
from torch import nn

import torchqx
from tests.torchqx.small import Net, batch
from torchqx.errors import UnsupportedError


def compiled(model: nn.Module) -> None:
    torch.compile(model, backend="torchqx")(batch())


def converted(model: nn.Module) -> None:
    torchqx.quantize(model, torchqx.OutlierSuppressionPlusConfig(), [batch()])


@pytest.mark.parametrize("door", [compiled, converted])
def test_weights_that_freezing_turned_into_constants(door: Callable[[nn.Module], None]):
    """They are no inputs then, and nothing could be quantized."""
    torch._dynamo.reset()
    with torch.no_grad(), inductor_config.patch(freezing=True), pytest.raises(UnsupportedError, match="freezing"):
        door(Net().eval())
    torch._dynamo.reset()
