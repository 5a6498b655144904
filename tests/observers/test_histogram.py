"""Ranges that clip, and the distribution of tokens' ranges."""

import pytest
import torch

from torchqx.errors import ConfigError
from torchqx.observers import HistogramObserver, MinMaxObserver, PercentileObserver, TokenQuantileObserver
from torchqx.quantizers import AffineQuantizer


def noise(observer, x: torch.Tensor) -> float:
    return float((observer.quantizer.fake_quantize(x, *observer.bounds()) - x).square().mean())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_mse_range_is_near_the_best_of_a_fine_search(bits, symmetric):
    torch.manual_seed(0)
    x = torch.distributions.StudentT(3.0).sample((300, 100)) + 0.5
    quantizer = AffineQuantizer(bits=bits, symmetric=symmetric)
    chosen, exact = HistogramObserver(quantizer), MinMaxObserver(quantizer)
    for part in x.split(70):
        chosen(part)
        exact(part)
    factors = torch.linspace(0.02, 1, 50)
    searched = min(
        float((quantizer.fake_quantize(x, x.min() * a, x.max() * b) - x).square().mean()) for a in factors
        for b in factors[::3])
    assert noise(chosen, x) < 1.02 * searched
    assert noise(chosen, x) < noise(exact, x) * (0.3 if bits == 4 else 0.95)


def test_uniform_data_is_not_clipped():
    x = torch.linspace(-1, 3, 10_000).view(-1, 1)
    observer = HistogramObserver(AffineQuantizer(bits=8))
    observer(x)
    low, high = observer.bounds()
    assert float(low) < -0.98
    assert float(high) > 2.98


def test_one_sided_and_constant_data():
    for x in (torch.rand(50, 3) + 5, -torch.rand(50, 3), torch.zeros(4, 3), torch.full((4, 3), 7.0)):
        observer = HistogramObserver()
        observer(x)
        low, high = observer.bounds()
        assert low <= 0 <= high
        assert high - low <= x.abs().max()
        assert torch.allclose(observer.quantizer.fake_quantize(x, low, high), x, atol=0.03)


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 100.0])
def test_percentiles(percentile):
    torch.manual_seed(0)
    x = torch.randn(1000, 63) * 4 + 1
    observer = PercentileObserver(percentile=percentile)
    for part in x.split(333):
        observer(part)
    low, high = observer.bounds()
    ordered = x.flatten().sort().values
    index = int(percentile / 100 * (len(ordered) - 1))
    torch.testing.assert_close(high, ordered[index], rtol=0.01, atol=0.02)
    torch.testing.assert_close(low, ordered[len(ordered) - 1 - index], rtol=0.01, atol=0.02)


def test_massive_tokens_show_in_the_quantiles_of_tokens():
    torch.manual_seed(0)
    x = torch.rand(2000, 7)
    x[::100] *= 1000
    observer = TokenQuantileObserver(quantile=0.95)
    for part in x.split(500):
        observer(part)
    _, highs = observer.quantiles([0.5, 1.0])
    assert highs[0] < 2
    assert highs[1] == x.max()
    assert observer.bounds()[1] < 2


def test_settings_outside_their_range():
    with pytest.raises(ConfigError, match="percentile"):
        PercentileObserver(percentile=30)
    with pytest.raises(ConfigError, match="quantile"):
        TokenQuantileObserver(quantile=0)
