"""The arguments with which PT2E constructs an observer -> our quantizer."""

import torch

from torchqx.errors import ConfigError
from torchqx.quantizers import AffineQuantizer

SIGNED = {torch.int8: True, torch.qint8: True, torch.uint8: False, torch.quint8: False}
SYMMETRIC = (torch.per_tensor_symmetric, torch.per_channel_symmetric)
PER_CHANNEL = (torch.per_channel_affine, torch.per_channel_symmetric)


def quantizer_from_pt2e(
    dtype: torch.dtype | None,
    quant_min: int | None,
    quant_max: int | None,
    qscheme: torch.qscheme | None,
    is_dynamic: bool,
) -> AffineQuantizer:
    """The widest quantizer whose codes lie in ``[quant_min, quant_max]``; unsigned 8-bit affine by default.

    A symmetric quantizer leaves out the lowest code, so int8 in [-128, 127] becomes [-127, 127].

    Raises:
        ConfigError: for a dtype that is not an 8-bit integer, or a code range that no quantizer fits.
    """
    signed = SIGNED.get(dtype if dtype is not None else torch.uint8)
    if signed is None:
        raise ConfigError(f"no integer quantizer stores {dtype}", where="dtype",
                          remedy="use torch.int8 or torch.uint8.")
    for bits in range(8, 1, -1):
        quantizer = AffineQuantizer(
            bits=bits,
            symmetric=qscheme in SYMMETRIC,
            granularity="channel" if qscheme in PER_CHANNEL else "tensor",
            dynamic=is_dynamic,
            signed=signed,
        )
        if (quant_min is None or quantizer.qmin >= quant_min) and (quant_max is None or quantizer.qmax <= quant_max):
            return quantizer
    raise ConfigError(f"codes {quant_min} to {quant_max} fit no {'int8' if signed else 'uint8'} quantizer",
                      where="quant_min, quant_max", remedy="widen the range, or leave it out for 8 bits.")
