"""Statistics of one tensor (observers), and what turns them into parameters (solvers)."""

from torchqx.observers.base import TensorObserver
from torchqx.observers.clusters import shared_limits
from torchqx.observers.histogram import HistogramObserver, PercentileObserver
from torchqx.observers.magnitude import MagnitudeObserver
from torchqx.observers.minmax import ChannelMinMaxObserver, MeanMinMaxObserver, MinMaxObserver
from torchqx.observers.reservoir import RowReservoir
from torchqx.observers.token import TokenQuantileObserver

__all__ = [
    "ChannelMinMaxObserver",
    "HistogramObserver",
    "MagnitudeObserver",
    "MeanMinMaxObserver",
    "MinMaxObserver",
    "PercentileObserver",
    "RowReservoir",
    "TensorObserver",
    "TokenQuantileObserver",
    "shared_limits",
]
