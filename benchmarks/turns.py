"""Calls of one process in turns: each round gives every call as many repetitions as fill its share of time."""

import math
import time
from collections.abc import Callable


class Turn:
    """One call's turns: ``seconds`` per call, one entry a round."""

    def __init__(self, call: Callable[[], object], turn_seconds: float) -> None:
        self.call = call
        self.seconds: list[float] = []
        call()  # builds what the first call builds
        self.count = 1
        self.count = max(2, math.ceil(turn_seconds / max(self._run(), 1e-7)))

    def __call__(self) -> None:
        """One more round, after one call to warm the caches that the others have emptied."""
        self.call()
        self.seconds.append(self._run() / self.count)

    def _run(self) -> float:
        started = time.perf_counter()
        for _ in range(self.count):
            self.call()
        return time.perf_counter() - started
