"""What holds for every observer."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchqx.errors import ConfigError, NoCalibrationDataError, NonFiniteError, ShapeError
from torchqx.observers import (
    ChannelMinMaxObserver,
    HistogramObserver,
    MeanMinMaxObserver,
    MinMaxObserver,
    PercentileObserver,
    RowReservoir,
    TokenQuantileObserver,
)
from torchqx.quantizers import AffineQuantizer

KINDS = [MinMaxObserver, MeanMinMaxObserver, PercentileObserver, HistogramObserver, ChannelMinMaxObserver,
         TokenQuantileObserver, RowReservoir]
WIDE = [ChannelMinMaxObserver, RowReservoir]
every_kind = pytest.mark.parametrize("kind", KINDS)


def same_state(a, b) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def batches(seed: int, number: int, channels: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 9, (number,), generator=generator).tolist()
    return [torch.randn(2, size, channels, generator=generator) * 3 + 1 for size in sizes]


@every_kind
def test_hands_on_its_input_untouched(kind):
    x = torch.randn(3, 7, 63, dtype=torch.bfloat16)
    before = x.clone()
    observer = kind(site="s")
    assert observer(x) is x
    assert torch.equal(x, before)
    assert int(observer.count) == 21


@every_kind
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_masking_is_dropping_rows(kind, seed):
    masked, dropped = kind(site="s"), kind(site="s")
    for x in batches(seed, 3):
        mask = torch.rand(x.shape[:-1], generator=torch.Generator().manual_seed(seed)) > 0.4
        masked(torch.where(mask.unsqueeze(-1), x, torch.nan), mask)
        dropped(x[mask])
    assert same_state(masked, dropped)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not RowReservoir])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), cut=st.integers(0, 4))
def test_merging_is_observing_everything(kind, seed, cut):
    data = batches(seed, 4)
    one, first, second = kind(site="s"), kind(site="s"), kind(site="s")
    for i, x in enumerate(data):
        one(x)
        (first if i < cut else second)(x)
    unmerged = copy.deepcopy(second)
    first.merge(second)
    assert same_state(second, unmerged)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(first.state_dict()[name], value, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(first.bounds(), one.bounds())


@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_statistics_are_float32_whatever_comes_in(kind, dtype):
    x = torch.randn(40, 5).to(dtype)
    observer, reference = kind(site="s"), kind(site="s")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        observer(x)
    reference(x.float())
    assert same_state(observer, reference)
    assert all(b.dtype in (torch.float32, torch.int64) for b in observer.buffers())


@every_kind
def test_runs_in_and_out_of_inference_mode(kind):
    data = batches(0, 3)
    observer, reference = kind(site="s"), kind(site="s")
    for i, x in enumerate(data):
        with torch.inference_mode(i != 1):
            observer(x * 2)
        reference((x * 2).requires_grad_())
    assert same_state(observer, reference)


@every_kind
def test_seeing_nothing_is_an_error_with_the_site(kind):
    observer = kind(site="layer.3.fc1")
    observer(torch.ones(2, 4), torch.zeros(2, dtype=torch.bool))
    observer(torch.ones(0, 4))
    with pytest.raises(NoCalibrationDataError, match=r"layer\.3\.fc1"):
        observer.calculate_qparams()


@every_kind
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_data_is_an_error_with_the_site(kind, bad):
    observer = kind(site="layer.3.fc1")
    observer(torch.randn(8, 4))
    observer(torch.tensor([[1.0, bad, 3.0, 4.0]]))
    observer(torch.randn(8, 4))
    with pytest.raises(NonFiniteError, match=r"layer\.3\.fc1"):
        observer.calculate_qparams()


@every_kind
def test_a_mask_must_fit(kind):
    observer = kind(site="s")
    with pytest.raises(ShapeError, match="mask"):
        observer(torch.ones(2, 3, 4), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ShapeError, match="mask"):
        observer(torch.ones(2, 3, 4), torch.ones(2, 3))


@pytest.mark.parametrize("kind", WIDE)
def test_the_number_of_channels_must_stay(kind):
    observer, other = kind(site="s"), kind(site="s")
    observer(torch.ones(2, 4))
    other(torch.ones(2, 5))
    with pytest.raises(ShapeError, match="5 channels after 4"):
        observer(torch.ones(2, 5))
    with pytest.raises(ShapeError, match="5 channels after 4"):
        observer.merge(other)


def test_only_one_kind_merges():
    with pytest.raises(ConfigError, match="HistogramObserver"):
        MinMaxObserver(site="s").merge(HistogramObserver())


@every_kind
def test_state_survives_saving_loading_and_half(kind):
    observer, loaded = kind(site="s"), kind(site="s")
    for x in batches(1, 2):
        observer(x)
    loaded.load_state_dict(observer.state_dict())
    loaded.half()
    assert same_state(observer, loaded)
    for each in (observer, loaded):
        each(batches(2, 1)[0])
    assert same_state(observer, loaded)


@every_kind
def test_memory_is_bounded(kind):
    observer = kind(site="s")
    sizes = set()
    for _ in range(5):
        observer(torch.randn(600, 7))
        sizes.add(sum(b.numel() for b in observer.buffers()))
    assert len(sizes) == 1


@every_kind
def test_the_range_covers_about_what_came(kind):
    torch.manual_seed(0)
    observer = kind(AffineQuantizer(bits=8), site="s")
    x = torch.randn(500, 100) + 2
    for part in x.split(100):
        observer(part)
    low, high = observer.bounds()
    assert low.shape == high.shape == ()
    assert x.quantile(0.02) > low >= x.min()
    assert x.quantile(0.98) < high <= x.max()
    scale, zero_point = observer.calculate_qparams()
    torch.testing.assert_close(scale, (high - low) / 255)
    assert zero_point.dtype == torch.int32


def test_ranges_per_channel():
    observer = ChannelMinMaxObserver(AffineQuantizer(granularity="channel", signed=True), site="s")
    x = torch.randn(30, 3) * torch.tensor([1.0, 10, 100])
    observer(x)
    assert torch.equal(observer.bounds()[0], x.amin(0))
    assert torch.equal(observer.channel_bounds()[1], x.amax(0))
    assert observer.calculate_qparams()[0].shape == (3,)
    with pytest.raises(ConfigError, match="ChannelMinMaxObserver"):
        MinMaxObserver(AffineQuantizer(granularity="channel", signed=True))


def test_the_mean_of_ranges():
    observer = MeanMinMaxObserver()
    for low, high in ((-1.0, 3.0), (-2.0, 4.0), (-9.0, 20.0)):
        observer(torch.tensor([[low, 0.0, high]]))
    low, high = observer.bounds()
    assert (float(low), float(high)) == (-4.0, 9.0)
