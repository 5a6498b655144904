from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from torchqx.observers.solvers import LinearProblem, Sample
from torchqx.quantizers import AffineQuantizer

ACTIVATION = AffineQuantizer()
WEIGHT = AffineQuantizer(granularity="channel", symmetric=True, signed=True)


@pytest.fixture(scope="session")
def problem_of() -> Callable[..., LinearProblem]:
    """Activation rows -> a problem with random weights; anything else can be overridden."""

    def build(x: Tensor, features: tuple[int, ...] = (40,), seed: int = 0, **changes) -> LinearProblem:
        generator = torch.Generator().manual_seed(seed)
        k = x.shape[-1]
        rows = x.reshape(-1, k)
        settings = {
            "site": "layer.0.fc1",
            "channel_low": rows.amin(0),
            "channel_high": rows.amax(0),
            "weights": [torch.randn(n, k, generator=generator) / k**0.5 for n in features],
            "biases": [None, *(torch.randn(n, generator=generator) for n in features[1:])],
            "samples": [Sample(x)],
            "activation": ACTIVATION,
            "weight": WEIGHT,
        }
        return LinearProblem(**settings | changes)

    return build


@pytest.fixture(scope="session")
def outlying() -> Tensor:
    """[300, 63]: five channels far off zero, and wide, in both directions: asymmetric outliers."""
    x = torch.randn(300, 63, generator=torch.Generator().manual_seed(0))
    for channel, (middle, width) in {3: (60, 1), 11: (-90, 4), 20: (50, 8), 40: (-70, 2), 62: (100, 1)}.items():
        x[:, channel] = x[:, channel] * width + middle
    return x
