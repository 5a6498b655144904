"""torchqx: quantization as a PyTorch compiler pass."""

from torchqx import handlers as _handlers  # noqa: F401  registers the recipes with torchao
from torchqx import registries as _registries  # noqa: F401  lets torch, torchao and transformers rebuild storage tensors
from torchqx import storage_ops as _storage_ops  # noqa: F401  registers what storage tensors do in eager mode
from torchqx.backend import torchqx_backend
from torchqx.baselines import MinMaxConfig, SmoothQuantScalingConfig
from torchqx.checkpoint import load, save
from torchqx.explain import Report, explain
from torchqx.hadamard import HadamardConfig
from torchqx.mamba_ptq import MambaPTQConfig, outlier_channels
from torchqx.outlier_suppression_plus import OutlierSuppressionPlusConfig
from torchqx.quamba import QuambaConfig
from torchqx.refresh import refresh
from torchqx.state_space import (
    causal_conv1d,
    causal_conv1d_update,
    chunk_scan,
    selective_scan,
    selective_state_update,
)
from torchqx.storage import QuantizedWeight
from torchqx.versions import check_torch
from torchqx.workflow import abandon, convert, prepare, quantize, whole_model

__all__ = [
    "HadamardConfig",
    "MambaPTQConfig",
    "MinMaxConfig",
    "OutlierSuppressionPlusConfig",
    "QuambaConfig",
    "QuantizedWeight",
    "Report",
    "SmoothQuantScalingConfig",
    "abandon",
    "causal_conv1d",
    "causal_conv1d_update",
    "chunk_scan",
    "convert",
    "explain",
    "load",
    "outlier_channels",
    "prepare",
    "quantize",
    "refresh",
    "save",
    "selective_scan",
    "selective_state_update",
    "torchqx_backend",
    "whole_model",
]

check_torch()
