"""What Triton's interpreter gets wrong or leaves out, put right. Only for a process in which it is switched on.

| upstream | here |
|---|---|
| libdevice functions return None or raise | numpy's, of :mod:`torchqx.testing.libdevice` |
| bfloat16 arithmetic works on the bit patterns, silently | decoded, computed in float32, rounded |
| float32 to bfloat16 truncates | rounds to nearest, ties to even |
| float to a narrower integer wraps around | saturates, as the GPU's instruction does; NaN gives 0 |
| multiply-add rounds twice | once |
| int8 matmul in numpy's integer loop | the same sums by BLAS, up to the length that float32 holds exactly |
| a loop over ``range`` of a loaded value (triton 3.6) | works |
"""

import inspect
from typing import Any

import numpy as np
import triton.language as tl
from triton import knobs
from triton.language.extra import libdevice as stub
from triton.language.extra.cuda import libdevice as cuda_libdevice
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, _get_np_dtype, interpreter_semantic

from torchqx.testing.bfloat16 import decoded, encoded
from torchqx.testing.fake_cuda import private
from torchqx.testing.libdevice import function

LONGEST_EXACT = 1024  # 2^7 · 2^7 · 1024 = 2^24: integers that float32 holds

_binary_op = private(InterpreterBuilder, "binary_op")
_unary_op = private(InterpreterBuilder, "unary_op")
_ternary_op = private(InterpreterBuilder, "ternary_op")
_cast = private(InterpreterBuilder, "cast_impl")
_create_dot = private(InterpreterBuilder, "create_dot")
_create_fp_to_fp = private(InterpreterBuilder, "create_fp_to_fp")
_patch_lang = private(interpreter, "_patch_lang")


def _is_bfloat16(handle: TensorHandle) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def _values(handle: TensorHandle) -> np.ndarray:
    return decoded(handle.data) if _is_bfloat16(handle) else handle.data


def _handle(values: np.ndarray, kind: Any) -> TensorHandle:
    kind = kind.scalar
    return TensorHandle(encoded(values) if kind == tl.bfloat16 else values.astype(_get_np_dtype(kind)), kind)


def binary_op(self: Any, left: TensorHandle, right: TensorHandle, op: Any) -> TensorHandle:
    if not _is_bfloat16(left):
        return _binary_op(self, left, right, op)
    values = op(_values(left), _values(right))
    return TensorHandle(values, tl.int1) if values.dtype == np.bool_ else _handle(values, tl.bfloat16)


def unary_op(self: Any, arg: TensorHandle, op: Any) -> TensorHandle:
    return _handle(op(_values(arg)), tl.bfloat16) if _is_bfloat16(arg) else _unary_op(self, arg, op)


def ternary_op(self: Any, a: TensorHandle, b: TensorHandle, c: TensorHandle, op: Any) -> TensorHandle:
    if op is np.clip and _is_bfloat16(a):
        return _handle(op(_values(a), _values(b), _values(c)), tl.bfloat16)
    return _ternary_op(self, a, b, c, op)


def create_fma(_: Any, x: TensorHandle, y: TensorHandle, z: TensorHandle) -> TensorHandle:
    return _handle(_values(x).astype(np.float64) * _values(y) + _values(z), z.dtype)


def create_dot(self: Any, a: TensorHandle, b: TensorHandle, d: TensorHandle, *rest: Any) -> TensorHandle:
    if _is_bfloat16(a) or _is_bfloat16(b):
        return _handle(np.matmul(_values(a), _values(b), dtype=np.float32) + d.data, d.dtype)
    if a.data.dtype == b.data.dtype == np.int8 and a.data.shape[-1] <= LONGEST_EXACT:
        sums = np.matmul(a.data.astype(np.float32), b.data.astype(np.float32))
        return TensorHandle(sums.astype(np.int32) + d.data, d.dtype.scalar)
    return _create_dot(self, a, b, d, *rest)


def cast_impl(self: Any, source: TensorHandle, kind: Any) -> TensorHandle:
    old, new = source.dtype.scalar, kind.scalar
    if new == tl.bfloat16:
        return _handle(_values(source).astype(np.float32), new)
    if old.is_floating() and new.is_int() and not new.is_bool():
        bounds = np.iinfo(_get_np_dtype(new))
        whole = np.nan_to_num(np.trunc(_values(source).astype(np.float64)), nan=0.0, posinf=bounds.max,
                              neginf=bounds.min)
        # Clipping in float64 would round the bounds of 64-bit integers out of their range.
        inside = np.where(whole >= float(bounds.max), bounds.max, np.where(whole <= float(bounds.min), bounds.min, 0))
        free = (whole < float(bounds.max)) & (whole > float(bounds.min))
        return _handle(np.where(free, np.where(free, whole, 0).astype(bounds.dtype), inside), new)
    if old == tl.bfloat16 and not new.is_ptr():
        return _handle(_values(source), new)
    return _cast(self, source, kind)


def create_fp_to_fp(self: Any, source: TensorHandle, kind: Any, rounding: Any) -> TensorHandle:
    if tl.bfloat16 in (kind.scalar, source.dtype.scalar):
        return cast_impl(self, source, kind)
    return _create_fp_to_fp(self, source, kind, rounding)


def create_extern_elementwise(_: Any, library: str, path: str, symbol: str, args: list[TensorHandle], kind: Any,
                              pure: bool) -> TensorHandle:
    with np.errstate(all="ignore"):
        values = function(symbol)(*(_values(a).astype(np.float64) for a in args))
    return _handle(np.asarray(values), kind)


def _patched_language(fn: Any) -> Any:
    scope = _patch_lang(fn)
    scope.set_attr(tl.tensor, "__index__", lambda self: int(self.handle.data.squeeze()))
    return scope


def _interpreted(builtin: Any) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        return builtin(*args, **kwargs | {"_semantic": interpreter_semantic})

    return call


def install() -> None:
    """Replace the interpreter's methods, for the rest of the process."""
    assert knobs.runtime.interpret, "the interpreter is off"
    for method in (binary_op, unary_op, ternary_op, create_fma, create_dot, cast_impl, create_fp_to_fp,
                   create_extern_elementwise):
        setattr(InterpreterBuilder, method.__name__, method)
    for name, builtin in inspect.getmembers(cuda_libdevice, tl.core.is_builtin):
        for module in (stub, cuda_libdevice):
            setattr(module, name, _interpreted(builtin))
    interpreter._patch_lang = _patched_language
