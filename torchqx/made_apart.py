"""Tensors that are made once for the whole process must not depend on who asks first."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec

from torch import Tensor

P = ParamSpec("P")


def made_apart(make: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """``make``, run on a thread of its own: what it returns may be cached, and what it raises comes through.

    The caller's modes belong to the caller's thread: fake tensors, inference mode, the default device, and the memory
    pool that Inductor's CUDA graphs take over from whoever allocates in their first call.
    """
    @functools.wraps(make)
    def apart(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(make, *args, **kwargs).result()

    return apart
