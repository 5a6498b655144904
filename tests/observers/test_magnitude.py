"""Magnitudes: peaks, quantiles smoothed over calls, merging."""

import pytest
import torch

from torchqx.errors import ConfigError, NoCalibrationDataError, NonFiniteError, ShapeError
from torchqx.observers import MagnitudeObserver


def test_peak_and_quantile_of_each_channel():
    x = torch.randn(1000, 3) * torch.tensor([1.0, 5.0, 0.1])
    observer = MagnitudeObserver([0.9, 0.5])
    observer(x)
    assert torch.equal(observer.limits(None), x.abs().amax(0))
    for alpha in (0.9, 0.5):
        torch.testing.assert_close(observer.limits(alpha), x.abs().quantile(alpha, 0, interpolation="higher"))
    low, high = observer.bounds()
    assert high == -low == x.abs().amax()


def test_quantiles_move_slowly_and_peaks_at_once():
    observer = MagnitudeObserver([0.5])
    observer(torch.ones(100, 1))
    observer(torch.full((100, 1), 11.0))
    assert observer.limits(0.5).item() == pytest.approx(1 + 0.01 * 10)
    assert observer.limits(None).item() == 11


def test_merging_weighs_by_calls():
    one, other, empty = MagnitudeObserver([0.5]), MagnitudeObserver([0.5]), MagnitudeObserver([0.5])
    for _ in range(3):
        one(torch.ones(10, 2))
    other(torch.full((10, 2), 5.0))
    one.merge(other)
    empty.merge(one)
    for observer in (one, empty):
        torch.testing.assert_close(observer.limits(0.5), torch.full((2,), 1 + 4 / 4))
        assert observer.limits(None).tolist() == [5, 5]
        assert observer.calls == 4


def test_errors():
    with pytest.raises(ConfigError, match="quantiles"):
        MagnitudeObserver([1.0])
    observer = MagnitudeObserver([0.5], site="mixer:scan:0 x")
    with pytest.raises(NoCalibrationDataError, match="mixer:scan:0 x"):
        observer.limits(None)
    observer(torch.ones(4, 2))
    with pytest.raises(ShapeError, match="3 channels after 2"):
        observer(torch.ones(4, 3))
    observer(torch.full((4, 2), float("nan")))
    with pytest.raises(NonFiniteError):
        observer.limits(0.5)
