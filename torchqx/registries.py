"""The lists that torch, torchao and transformers consult before they rebuild anything of ours from a file."""

from typing import Any

import torch
from torchao.core.config import ALLOWED_AO_MODULES
from torchao.prototype.safetensors.safetensors_utils import ALLOWED_CLASSES, ALLOWED_TENSORS_SUBCLASSES

from torchqx.quantizers import AffineQuantizer
from torchqx.rotations import Hadamard
from torchqx.storage import QuantizedWeight
from torchqx.validate import check


def rebuild_quantized_weight(**components: Any) -> QuantizedWeight:
    """What torchao's safetensors reader calls with a file's components. Raises CheckpointError unless they fit."""
    weight = QuantizedWeight(**components)
    check(weight)
    return weight


def _set_state_and_check(weight: QuantizedWeight, state: Any) -> None:
    """Where unpickling ends (``torch.load``). Raises CheckpointError unless the components fit."""
    _set_state(weight, state)
    check(weight)


# Set from outside: torchao's base class gives each subclass its own __setstate__, over one in the class body.
_set_state, QuantizedWeight.__setstate__ = QuantizedWeight.__setstate__, _set_state_and_check
ALLOWED_AO_MODULES.add("torchqx")
ALLOWED_CLASSES[QuantizedWeight.__name__] = rebuild_quantized_weight
ALLOWED_TENSORS_SUBCLASSES.append(QuantizedWeight.__name__)
torch.serialization.add_safe_globals([QuantizedWeight, AffineQuantizer, Hadamard])
