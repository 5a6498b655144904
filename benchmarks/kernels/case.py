"""What is timed: one kernel, one size, and the calls to compare on the same operands."""

from collections.abc import Callable
from dataclasses import dataclass

Arms = dict[str, Callable[[], object]]
OURS = "torchqx"


@dataclass(frozen=True)
class Case:
    """One row of the kernel table.

    Attributes:
        arms: makes the operands and the calls by name, OURS among them.
        int8: multiply-adds that the machine's int8 rate limits; 0 where a ``copy`` arm is the limit.
    """

    kernel: str
    size: str
    arms: Callable[[], Arms]
    int8: int = 0

    @property
    def name(self) -> str:
        return f"{self.kernel} {self.size}"
