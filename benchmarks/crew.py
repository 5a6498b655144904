"""Workers as the parent sees them: processes that build what they are sent and take their turns."""

import math
import multiprocessing
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from benchmarks.worker import Arm, Built, Failed, Loadable, serve

DIED = Failed("the worker died: see its output above (out of memory?)")
SPAWN = multiprocessing.get_context("spawn")


class Worker:
    """One arm's process. It starts with the first workload, so that an early arm is built undisturbed."""

    def __init__(self, arm: Arm, threads: int) -> None:
        self.arm, self.threads = arm, threads
        self._connection: Connection | None = None
        self._process: BaseProcess | None = None

    def order(self, workload: Loadable) -> None:
        """Have it build ``workload``; the call does not wait."""
        if self._process is None:
            self._connection, theirs = SPAWN.Pipe()
            self._process = SPAWN.Process(target=serve, args=(theirs, self.arm, self.threads), daemon=False)
            self._process.start()
            theirs.close()
        self._connection.send(workload)

    def built(self) -> Built | Failed:
        """Wait for what was ordered. A process that died is replaced with the next order."""
        try:
            return self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            self._process = None
            return DIED

    def turn(self, seconds: float) -> list[float]:
        """Seconds of each call: two to warm the caches that the others have emptied, then calls for ``seconds``."""
        warm = self._ask(2)[-1]
        return self._ask(max(3, math.ceil(seconds / warm)))

    def peak_mib(self) -> float:
        """The largest resident size since the build."""
        return self._ask(0)

    def close(self) -> None:
        """End the process, if it was started."""
        if self._process is not None:
            if self._process.is_alive():
                self._connection.send(None)
            self._process.join()

    def _ask(self, count: int) -> list[float] | float:
        self._connection.send(count)
        return self._connection.recv()


@contextmanager
def crew(arms: Iterable[Arm], threads: int) -> Iterator[list[Worker]]:
    """A worker for each arm, ended with the block."""
    workers = [Worker(arm, threads) for arm in arms]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.close()
