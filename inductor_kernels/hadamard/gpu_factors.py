"""How a Hadamard matrix splits into factors that tensor cores multiply by.

    H_block = F_1 ⊗ F_2 ⊗ ... ⊗ F_n        F_1 = H_base ⊗ Sylvester(2^j), the others Sylvester matrices

Tensor cores want at least 16 rows, Triton powers of two: F_1 is padded with zeros, which pads the end of the block. Of
another factor with fewer rows several stand along the diagonal of a matrix of 16, which multiplies as many neighbours.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from torchqx.hadamard_matrices import factors_of

SMALLEST, LARGEST = 16, 128  # sizes of a factor that stands whole in a program
ROOMY = 64  # a larger one is taken where there is no choice
LARGEST_GENERATED = 256  # the kernels count the common bits of eight
WIDEST = 16384  # elements of a padded block: what the registers of one program hold in float32
_PASS = 100  # what a pass over the block in shared memory costs, in multiplications per element


@dataclass(frozen=True)
class Factor:
    """``order`` rows of a Hadamard matrix, in a matrix of ``size``; ``dense`` unless it is a Sylvester matrix."""

    order: int
    dense: bool

    @property
    def size(self) -> int:
        return max(SMALLEST, 1 << (self.order - 1).bit_length())


@dataclass(frozen=True)
class Factors:
    """Of one block, the outermost first."""

    parts: tuple[Factor, ...]

    @property
    def width(self) -> int:
        """Elements of a padded block."""
        return self.parts[0].size * math.prod(f.order for f in self.parts[1:])

    @property
    def sliced(self) -> bool:
        """Whether the first factor is too large to stand whole beside its operand."""
        return self.parts[0].size > LARGEST

    @property
    def has_kernel(self) -> bool:
        """A sliced factor needs one more, of 16 or more, and that alone, to make matrices of its operand."""
        first, *others = self.parts
        if self.sliced:
            fits = first.dense or first.size <= LARGEST_GENERATED
            return fits and len(others) == 1 and others[0].order >= SMALLEST
        return self.width <= WIDEST

    @property
    def holds_row(self) -> bool:
        """Whether one program has a whole block, so that it can find its range."""
        return self.has_kernel and self.width <= WIDEST

    @property
    def crowded(self) -> bool:
        """Whether a factor leaves its operand few registers."""
        return any(f.size > ROOMY for f in self.parts)

    @property
    def cost(self) -> tuple[bool, bool, int, int]:
        work = sum(f.size for f in self.parts) + _PASS * len(self.parts)
        return not self.has_kernel, self.crowded, work, self.width


@functools.cache
def factors(block: int) -> Factors:
    """The factors of a block with the fewest multiplications and passes.

    Raises:
        ShapeError: no matrix of this order is known.
    """
    base, power = factors_of(block)
    return min((Factors((Factor(base << shift, base > 1), *(Factor(size, False) for size in sizes)))
                for shift in range(power.bit_length()) for sizes in _partitions(power >> shift, LARGEST)),
               key=lambda f: f.cost)


def _partitions(power: int, largest: int) -> Iterator[tuple[int, ...]]:
    """Descending powers of two, at most ``largest``, with the product ``power``."""
    if power == 1:
        yield ()
    size = 2
    while size <= min(power, largest):
        for smaller in _partitions(power // size, size):
            yield (size, *smaller)
        size *= 2
