"""The device library's functions in numpy: what a generated kernel calls, for the interpreter.

Every function takes and gives float64, and is rounded once, to the kernel's type: within half a unit in the last place,
where the device library itself is within one or two.
"""

import math
from collections.abc import Callable

import numpy as np

from torchqx.errors import UnsupportedError

Function = Callable[..., np.ndarray]


def _each(function: Callable[[float], float]) -> Function:
    return np.vectorize(function, otypes=[np.float64])


def _half_away_from_zero(x: np.ndarray) -> np.ndarray:
    return np.copysign(np.floor(np.abs(x) + 0.5), x)


FUNCTIONS: dict[str, Function] = {
    "rint": np.rint, "nearbyint": np.rint, "llrint": np.rint, "round": _half_away_from_zero,
    "llround": _half_away_from_zero, "floor": np.floor, "ceil": np.ceil, "trunc": np.trunc,
    "abs": np.abs, "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x), "cbrt": np.cbrt,
    "exp": np.exp, "exp2": np.exp2, "expm1": np.expm1, "exp10": lambda x: np.power(10.0, x),
    "log": np.log, "log2": np.log2, "log10": np.log10, "log1p": np.log1p, "pow": np.power,
    "sin": np.sin, "cos": np.cos, "tan": np.tan, "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan,
    "sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh, "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh,
    "erf": _each(math.erf), "erfc": _each(math.erfc), "lgamma": _each(math.lgamma), "tgamma": _each(math.gamma),
    "isnan": np.isnan, "isinf": np.isinf, "finite": np.isfinite, "isfinite": np.isfinite, "signbit": np.signbit,
    "fmin": np.fmin, "fmax": np.fmax, "fmod": np.fmod, "atan2": np.arctan2, "hypot": np.hypot,
    "copysign": np.copysign, "fma": lambda x, y, z: x * y + z,
    "float2int_rn": np.rint, "float2int_rz": np.trunc, "float2int_rd": np.floor, "float2int_ru": np.ceil,
    "double2int_rn": np.rint, "double2int_rz": np.trunc,
    "div_rn": np.divide, "sqrt_rn": np.sqrt, "mul_rn": np.multiply, "add_rn": np.add, "sub_rn": np.subtract,
}


def function(symbol: str) -> Function:
    """The numpy function for a symbol such as ``__nv_rsqrtf``.

    Raises:
        UnsupportedError: there is none.
    """
    name = symbol.removeprefix("__nv_")
    shorter = name.removesuffix("f")  # of the float32 variants
    for candidate in (name, shorter, shorter.removeprefix("fast_"), shorter.removeprefix("f"), name.removeprefix("f"),
                      name.removesuffix("d")):
        if candidate in FUNCTIONS:
            return FUNCTIONS[candidate]
    raise UnsupportedError(f"the interpreter knows no {symbol}", where="torchqx.testing.libdevice",
                           remedy="add its numpy function to FUNCTIONS.")
