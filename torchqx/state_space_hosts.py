"""transformers' state-space functions become one operator each in the graphs of our backends; all else stays as it is.

transformers computes scans and causal convolutions in module-level functions, the scan as a Python loop over time steps
wherever no CUDA package is installed. They are found by name in whatever modeling module is loaded, and Dynamo is told
to trace the functions below in their place. Where those cannot stand in (a device but CPU and CUDA, another
activation, another signature), the original is traced. So it is for eager mode, exports, and backends that do not ask
for the operators: which backend a trace is for is decided while tracing, and Dynamo keeps the code of each backend
apart.
"""

import functools
import inspect
import math
import sys
import warnings
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import assume_constant_result, callback_handler
from torch._dynamo.eval_frame import innermost_backend
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch.nn import Module

from torchqx import state_space
from torchqx.errors import TorchqxWarning

DEVICES = ("cpu", "cuda")
ACTIVATIONS = (None, "silu", "swish")
STATES = (torch.float32, torch.bfloat16, torch.float64)
NO_LIMIT = (0.0, math.inf)


def takes_operators(backend: Callable[..., Any]) -> Callable[..., Any]:
    """Ask for our operators in the graphs that Dynamo traces for ``backend``; returns it."""
    backend.takes_state_space_operators = True
    return backend


def _stands_in(x: Tensor, activation: str | None, named: dict[str, Any]) -> bool:
    packed = named.get("seq_idx") is not None or named.get("cu_seqlens") is not None
    return x.device.type in DEVICES and activation in ACTIVATIONS and not packed


def _scan(original: Callable[..., Any]) -> Callable[..., Any]:
    def selective_scan(hidden_states, dt, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False,
                       return_last_state=False, use_mambapy=False, use_associative_scan=False, **kwargs):
        if not _stands_in(hidden_states, None, kwargs):
            return original(hidden_states, dt, A, B, C, D, z, delta_bias, delta_softplus, return_last_state,
                            use_mambapy, use_associative_scan, **kwargs)
        return state_space.selective_scan(hidden_states, dt, A, B, C, D, z, delta_bias, delta_softplus,
                                          return_last_state)

    return selective_scan


def _update(original: Callable[..., Any]) -> Callable[..., Any]:
    def selective_state_update(state, hidden_states, dt, A, B, C, D=None, dt_bias=None, dt_softplus=False, z=None,
                               **kwargs):
        if not _stands_in(hidden_states, None, kwargs):
            return original(state, hidden_states, dt, A, B, C, D, dt_bias, dt_softplus, z, **kwargs)
        operands = (hidden_states, dt, A, B, C, D, z, dt_bias, dt_softplus)
        if state.is_contiguous() and state.dtype in STATES:
            return state_space.selective_state_update(state, *operands)
        own = state.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        y = state_space.selective_state_update(own, *operands)
        state.copy_(own)
        return y

    return selective_state_update


def _chunk_scan(original: Callable[..., Any]) -> Callable[..., Any]:
    def chunk_scan(hidden_states, dt, A, B, C, chunk_size, D=None, dt_bias=None, initial_states=None,
                   dt_softplus=False, dt_limit=NO_LIMIT, return_final_states=False, **kwargs):
        if not _stands_in(hidden_states, None, kwargs):
            return original(hidden_states, dt, A, B, C, chunk_size, D, dt_bias, initial_states, dt_softplus, dt_limit,
                            return_final_states, **kwargs)
        return state_space.chunk_scan(hidden_states, dt, A, B, C, D, None, dt_bias, initial_states, None, dt_softplus,
                                      dt_limit, return_final_states)

    return chunk_scan


def _conv(original: Callable[..., Any]) -> Callable[..., Any]:
    def causal_conv1d(hidden_states, weight, bias=None, activation=None, **kwargs):
        if not _stands_in(hidden_states, activation, kwargs):
            return original(hidden_states, weight, bias, activation, **kwargs)
        return state_space.causal_conv1d(hidden_states, weight, bias, activation)

    return causal_conv1d


def _conv_update(original: Callable[..., Any]) -> Callable[..., Any]:
    def causal_conv1d_update(hidden_states, conv_state, weight, bias=None, activation=None):
        if not _stands_in(hidden_states, activation, {}):
            return original(hidden_states, conv_state, weight, bias, activation)
        if conv_state.is_contiguous() and conv_state.dtype == hidden_states.dtype:
            return state_space.causal_conv1d_update(hidden_states, conv_state, weight, bias, activation)
        own = conv_state.to(hidden_states.dtype, memory_format=torch.contiguous_format, copy=True)
        y = state_space.causal_conv1d_update(hidden_states, own, weight, bias, activation)
        conv_state.copy_(own)
        return y

    return causal_conv1d_update


STAND_INS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "mamba_selective_scan": _scan,
    "mamba_selective_state_update": _update,
    "mamba2_selective_state_update": _update,
    "mamba2_chunk_scan": _chunk_scan,
    "causal_conv1d_fn": _conv,
    "causal_conv1d_update": _conv_update,
}
_substituted: set[FunctionType] = set()  # Dynamo keeps them for good too


def substitute_loaded(*_: Any) -> None:
    """Substitute the functions of every loaded module; Dynamo's start of any compilation calls it, so a modeling module
    may be imported before torchqx or after, and again."""
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", None)
        for name, stand_in in STAND_INS.items() if isinstance(names, dict) else ():
            function = _function(names.get(name))
            if function is not None and function not in _substituted:
                _substituted.add(function)
                _substitute(function, stand_in)


def _function(value: Any) -> FunctionType | None:
    """The decorated function behind a module's global; with the package ``kernels`` installed, a module wraps it."""
    if isinstance(value, Module):
        value = inspect.getclosurevars(type(value).forward).nonlocals.get("func")
    return value if isinstance(value, FunctionType) and hasattr(value, "__wrapped__") else None


def _substitute(function: FunctionType, stand_in: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    original = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__,
                            function.__closure__)  # another object: the substitution does not reach it
    original.__kwdefaults__ = function.__kwdefaults__
    ours = stand_in(original)
    known = _parameters(ours) == _parameters(function)
    name = f"{function.__module__}.{function.__name__}{inspect.signature(function)}"

    asked_for, tell_of = _asked_for, _tell_of  # Dynamo guards globals, but nothing that a closure holds

    def traced(*args: Any, **kwargs: Any) -> Any:
        if not asked_for():
            return original(*args, **kwargs)
        return ours(*args, **kwargs) if known else tell_of(name) and original(*args, **kwargs)

    torch.compiler.substitute_in_graph(function)(traced)


def _parameters(function: Callable[..., Any]) -> list[tuple[str, Any]]:
    return [(p.name, p.default) for p in inspect.signature(function).parameters.values()]


@assume_constant_result
def _asked_for() -> bool:
    """Whether Dynamo traces for a backend that takes our operators."""
    backend = innermost_backend(InstructionTranslator.current_tx().output.compiler_fn)
    return getattr(getattr(backend, "compiler_fn", backend), "takes_state_space_operators", False)


@assume_constant_result
def _tell_of(name: str) -> bool:
    _warn_once(name)
    return True


@functools.cache
def _warn_once(name: str) -> None:
    warnings.warn(f"{name} has other parameters than the function of that name that torchqx knows: it is traced step "
                  "by step, in float", TorchqxWarning, stacklevel=2)


class _Kept(list):
    """Callbacks of which ours outlives ``torch._dynamo.reset()``."""

    def clear(self) -> None:
        super().clear()
        self.append(substitute_loaded)


callback_handler.start_callbacks = _Kept([*callback_handler.start_callbacks, substitute_loaded])
substitute_loaded()
