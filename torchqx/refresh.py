"""For changes that torch keeps no count of."""

import torch
from torch.nn import Module

from torchqx.storage import QuantizedWeight
from torchqx.workflow import unwrap


def refresh(model: Module) -> Module:
    """Look at every weight of ``model`` again when it is called next. Returns ``model``.

    In-place writes, ``load_state_dict``, replaced parameters and other storage are noticed without this. Writes through
    ``.data`` (``p.data.mul_(2)``) and writes to tensors made in inference mode are not: call this after them. Weights
    are quantized anew; what calibration learned of the activations stays.
    """
    plain = unwrap(model)
    for tensor in (*plain.parameters(), *plain.buffers()):
        if isinstance(tensor, QuantizedWeight):
            tensor.renew()
        elif tensor.is_inference():
            with torch.inference_mode():
                tensor.data = tensor.clone()
        else:
            torch.autograd.graph.increment_version(tensor)
    return model
