"""bfloat16 as numpy has it not: bit patterns in uint16, rounded to nearest, ties to even."""

import numpy as np


def decoded(bits: np.ndarray) -> np.ndarray:
    """uint16 bit patterns -> float32, exact."""
    return (np.asarray(bits, dtype=np.uint16).astype(np.uint32) << 16).view(np.float32)


def encoded(values: np.ndarray) -> np.ndarray:
    """float32 -> uint16 bit patterns; NaN becomes the quiet one."""
    values = np.asarray(values, dtype=np.float32)
    bits = np.ascontiguousarray(values).view(np.uint32).reshape(values.shape)
    ties_to_even = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = (bits + (np.uint32(0x7FFF) + ties_to_even)) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded.astype(np.uint16))
