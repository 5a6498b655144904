"""Two helper processes, started when first asked: one interprets Triton code, the other compiles it.

Triton decides when it is imported whether kernels are interpreted or compiled, so no process can do both; and LLVM ends
the whole process over some of AMD's errors, which must not be ours.
"""

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any
from unittest import mock

import torch

from torchqx.errors import UnsupportedError


class Worker:
    """One process.

    Args:
        start: "spawn" for one that imports everything anew, "fork" for a copy of this one, there at once.
        variables: of its environment.
    """

    def __init__(self, purpose: str, start: str, **variables: str) -> None:
        self.purpose, self.start, self.variables = purpose, start, variables
        self._pool: ProcessPoolExecutor | None = None
        self._cache: tempfile.TemporaryDirectory | None = None

    def submit(self, function: Callable[..., Any], *args: Any) -> Future:
        """Have the process run ``function``, a name of a module; it and ``args`` are pickled."""
        if self._pool is not None:
            return self._pool.submit(function, *args)
        # Kernels of an earlier version of some source must not be found again.
        self._cache = tempfile.TemporaryDirectory(prefix="torchqx_triton_")
        # A copy of this process has none of its threads, so torch must not wait for them.
        self._pool = ProcessPoolExecutor(1, get_context(self.start), torch.set_num_threads, (1,))
        with mock.patch.dict(os.environ, self.variables | {"TRITON_CACHE_DIR": self._cache.name}):
            return self._pool.submit(function, *args)  # this starts the process

    def result(self, answer: Future) -> Any:
        """What the process answers.

        Raises:
            UnsupportedError: the process ended.
        """
        try:
            return answer.result()
        except BrokenProcessPool as error:
            self._pool = None
            raise UnsupportedError(
                f"the process that {self.purpose} ended", where="torchqx.testing",
                remedy="its last words are on stderr; inline assembly of another vendor makes LLVM exit.") from error

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.result(self.submit(function, *args))


INTERPRETER = Worker("interprets Triton code", "spawn", TRITON_INTERPRET="1")
COMPILER = Worker("compiles Triton code", "fork")
