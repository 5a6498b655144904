"""How a Hadamard matrix splits into factors that tensor cores multiply by.

    H_block = F_1 ⊗ F_2 ⊗ ... ⊗ F_n        F_1 = H_base ⊗ Sylvester(2^j), the others Sylvester matrices

Tensor cores want at least 16 rows, Triton powers of two: F_1 is padded with zeros, which pads the end of the block.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from torchqx.hadamard_matrices import factors_of

SMALLEST, LARGEST = 16, 128
WIDEST = 16384  # elements of a padded block: what the registers of one program hold in float32
_PASS = 100  # what a pass over the block in shared memory costs, in multiplications per element


@dataclass(frozen=True)
class Factor:
    """One factor: ``order`` rows of a Hadamard matrix, padded to ``size``; ``dense`` unless it is a Sylvester matrix."""

    order: int
    dense: bool

    @property
    def size(self) -> int:
        return max(SMALLEST, 1 << (self.order - 1).bit_length())


def width(factors: tuple[Factor, ...]) -> int:
    """Elements of a padded block."""
    return math.prod(f.size for f in factors)


@functools.cache
def factors(block: int) -> tuple[Factor, ...]:
    """The factors of a block, the outermost first, with the fewest multiplications and passes.

    Raises:
        ShapeError: no matrix of this order is known.
    """
    base, power = factors_of(block)
    return min((candidate for shift in range(power.bit_length())
                for candidate in _candidates(base << shift, power >> shift, base > 1)), key=_cost)


@functools.cache
def split(block: int) -> tuple[int, int] | None:
    """(outer, inner) with outer · inner = block where one program cannot hold a block: two products, one after the
    other; None where one can."""
    if width(factors(block)) <= WIDEST:
        return None
    base, power = factors_of(block)
    inner = min(power, 1 << max(4, (power * base).bit_length() // 2))
    return block // inner, inner


def _candidates(first: int, rest: int, dense: bool) -> Iterator[tuple[Factor, ...]]:
    for sizes in _partitions(rest, LARGEST):
        yield (Factor(first, dense), *(Factor(size, False) for size in sizes))


def _partitions(power: int, largest: int) -> Iterator[tuple[int, ...]]:
    """Descending powers of two with the product ``power``."""
    if power == 1:
        yield ()
    size = SMALLEST
    while size <= min(power, largest):
        for smaller in _partitions(power // size, size):
            yield (size, *smaller)
        size *= 2


def _cost(candidate: tuple[Factor, ...]) -> int:
    sizes = [f.size for f in candidate]
    return sum(sizes) + _PASS * len(sizes)


def fits(block: int) -> bool:
    return width(factors(block)) <= WIDEST and factors(block)[0].size <= 256
