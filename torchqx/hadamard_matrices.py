"""Hadamard matrices, generated: square matrices of +-1 with H Hᵀ = n I.

    H_block = H_base ⊗ Sylvester(2^k)        the smallest base order that is known for the odd part of the block

| construction | order | from |
|---|---|---|
| Sylvester | 2^k | [1 1; 1 -1] ⊗ ... |
| Paley I | q + 1 | the quadratic residues of GF(q), q a prime power, q mod 4 = 3 |
| Paley II | 2 (q + 1) | the same, q mod 4 = 1 |
| Williamson | 4 n | four symmetric circulants with A² + B² + C² + D² = 4 n I; one row of signs each, found by search |
| Baumert-Hall | 12 n | the same four, three times each in every row |
"""

import functools
import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from torchqx.errors import ShapeError
from torchqx.finite_field import is_prime_power, quadratic_character
from torchqx.made_apart import made_apart

SMALL_BASES = (12, 20, 28, 36)  # the orders whose products are bases too
SMALL_ENOUGH = 60  # a base up to here needs no product instead
LARGEST_PRODUCT = 576
SHORTEST_RUN = 16  # a product leaves at least this power of two: a vector of a CPU
LARGEST_BASE = 512  # a rotation costs up to this many additions per element for its base; beyond, smaller blocks pay
# First halves (the rest mirrors them) of the first rows of A, B, C, D, where neither Paley construction has the order.
WILLIAMSON = {
    23: ("+--++-+-+---", "+-+--+++++--", "+-+++--++-+-", "+++++-++---+"),
    29: ("+++--++-+-+----", "+++---+++-+-+--", "+--+-+++++--++-", "+++-++-+--+++-+"),
    43: ("+++++-++----+-++--++-+", "+++---++--+-+-+-++----", "++-+-++++-+--+--+++--+", "+-++-----++++-+-+++-++"),
}

BAUMERT_HALL = {13: ("++++-+-", "++---+-", "++---+-", "+---+-+")}  # likewise


@functools.cache
def split(order: int) -> tuple[int, int] | None:
    """(base, 2^k) with base · 2^k = ``order``; None for an unknown order.

    The smallest base that is known; where that is large, a product of two small ones if enough of 2^k remains: rows
    times A ⊗ B cost about as many additions as A and B have rows together.
    """
    power = order & -order
    base = order // power
    if base == 1:
        return 1, order
    product = next((p for p in sorted(_products()) if order % p == 0 and p // (p & -p) == base), 0)
    while power > 1 and base < LARGEST_BASE:
        power, base = power // 2, base * 2
        if base % 4 == 0 and base <= LARGEST_BASE and _construction(base) is not None:
            by_product = base > SMALL_ENOUGH and product and order // product >= SHORTEST_RUN
            return (product, order // product) if by_product else (base, power)
    return None


@functools.cache
def _products() -> dict[int, tuple[int, int]]:
    """Base -> the two small bases it is a product of."""
    pairs = itertools.combinations_with_replacement(SMALL_BASES, 2)
    return {a * b: (a, b) for a, b in pairs if a * b <= LARGEST_PRODUCT}


def bases_of(base: int) -> tuple[int, ...]:
    """The orders whose Kronecker product a base of :func:`split` is, none for 1."""
    return () if base == 1 else _products().get(base, (base,))


def factors_of(order: int) -> tuple[int, int]:
    """(base, 2^k), as :func:`split`.

    Raises:
        ShapeError: no matrix of this order is known here.
    """
    parts = split(order) if order >= 1 else None
    if parts is None:
        raise ShapeError(f"no Hadamard matrix of order {order}", where="hadamard",
                         remedy="torchqx.rotations.choose(K) takes the largest block that has one.")
    return parts


def is_known(order: int) -> bool:
    """Whether :func:`hadamard_matrix` has this order."""
    return order >= 1 and split(order) is not None


@functools.lru_cache(maxsize=16)
@made_apart
def hadamard_matrix(order: int) -> Tensor:
    """The matrix of that order, int8 [order, order] of +-1; kept, so do not write into it.

    Raises:
        ShapeError: no matrix of this order is known here.
    """
    base, power = factors_of(order)
    return torch.kron(base_matrix(base), sylvester(power))


def times_hadamard(x: Tensor, block: int, transpose: bool = False) -> Tensor:
    """Each block of the rows times H, or Hᵀ, over sqrt(block): [..., K] -> the same, in the dtype of ``x``.

    One small product per factor, (A ⊗ B ⊗ C) acting on the dimensions of a block seen as [a, b, c]: the whole matrix
    is never made.
    """
    base, power = factors_of(block)
    factors = [*map(base_matrix, bases_of(base)), *_sylvester_factors(power)]
    y = x.unflatten(-1, (-1, *(len(h) for h in factors)))
    for d, h in enumerate(reversed(factors), 1):
        h = h.to(x.device, x.dtype)
        y = (y.movedim(-d, -1) @ (h.T if transpose else h)).movedim(-1, -d)
    return y.reshape(x.shape) * block**-0.5


def _sylvester_factors(power: int) -> list[Tensor]:
    most = 64
    return [sylvester(min(power, most))] + (_sylvester_factors(power // most) if power > most else [])


@functools.cache
@made_apart
def base_matrix(base: int) -> Tensor:
    """The factor that is not a power of two, int8 [base, base]; [1] for 1."""
    h = torch.ones(1, 1, dtype=torch.int8)
    for order in bases_of(base):
        construction = _construction(order)
        assert construction is not None
        h = torch.kron(h, construction(order))
    return h


def sylvester(order: int) -> Tensor:
    """int8 [order, order]: element (i, j) is -1 where i and j have an odd number of set bits in common."""
    h = torch.ones(1, 1, dtype=torch.int8)
    while len(h) < order:
        h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)))
    return h


def _construction(order: int) -> Callable[[int], Tensor] | None:
    if (order - 1) % 4 == 3 and is_prime_power(order - 1):
        return _paley_one
    if (order // 2 - 1) % 4 == 1 and is_prime_power(order // 2 - 1):
        return _paley_two
    if order % 12 == 0 and order // 12 in BAUMERT_HALL:
        return _baumert_hall
    return _williamson if order // 4 in WILLIAMSON else None


def _bordered(q: int, corner: int) -> Tensor:
    """[0 1; corner·1 Q] with Q[a, b] = character(b - a), [q + 1, q + 1]."""
    s = torch.zeros(q + 1, q + 1, dtype=torch.int8)
    s[0, 1:], s[1:, 0] = 1, corner
    s[1:, 1:] = quadratic_character(q)
    return s


def _paley_one(order: int) -> Tensor:
    """I + S with S skew."""
    return torch.eye(order, dtype=torch.int8) + _bordered(order - 1, -1)


def _paley_two(order: int) -> Tensor:
    """S ⊗ [1 1; 1 -1] + I ⊗ [1 -1; -1 -1] with S symmetric."""
    s = _bordered(order // 2 - 1, 1)
    plus = torch.tensor([[1, 1], [1, -1]], dtype=torch.int8)
    zero = torch.tensor([[1, -1], [-1, -1]], dtype=torch.int8)
    return torch.kron(s, plus) + torch.kron(torch.eye(len(s), dtype=torch.int8), zero)


def _williamson(order: int) -> Tensor:
    """[A B C D; -B A -D C; -C D A -B; -D -C B A]."""
    n = order // 4
    a, b, c, d = (_symmetric_circulant(half, n) for half in WILLIAMSON[n])
    rows = ((a, b, c, d), (-b, a, -d, c), (-c, d, a, -b), (-d, -c, b, a))
    return torch.cat([torch.cat(row, 1) for row in rows])


def _baumert_hall(order: int) -> Tensor:
    """[X YR ZR WR; -YR X WᵀR -ZᵀR; -ZR -WᵀR X YᵀR; -WR ZᵀR -YᵀR X], block circulants of three and their reversal R."""
    n = order // 12
    a, b, c, d = (_symmetric_circulant(half, n) for half in BAUMERT_HALL[n])
    x, y, z, w = (a, b, c), (-b, a, d), (-c, -d, a), (-d, c, -b)

    def of(parts: tuple[Tensor, ...], start: int, step: int) -> Tensor:
        """Block (i, j) is parts[start + step · j - i], counted round."""
        return torch.cat([torch.cat([parts[(start + step * j - i) % 3] for j in range(3)], 1) for i in range(3)])

    diagonal = of(x, 0, 1)
    yr, zr, wr = (of(parts, 2, -1) for parts in (y, z, w))
    ytr, ztr, wtr = (of(parts[::-1], 4, -1) for parts in (y, z, w))
    rows = ((diagonal, yr, zr, wr), (-yr, diagonal, wtr, -ztr), (-zr, -wtr, diagonal, ytr), (-wr, ztr, -ytr, diagonal))
    return torch.cat([torch.cat(row, 1) for row in rows])


def _symmetric_circulant(half: str, n: int) -> Tensor:
    signs = torch.tensor([1 if s == "+" else -1 for s in half], dtype=torch.int8)
    i = torch.arange(n)
    distance = (i[:, None] - i).abs()
    return signs[torch.minimum(distance, n - distance)]
