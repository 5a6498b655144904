"""Squares in the finite fields of q = p^k elements: what the Paley matrices are made of."""

import itertools

import torch
from torch import Tensor

Element = tuple[int, ...]  # coefficients of a polynomial over GF(p), lowest first


def prime_power(q: int) -> tuple[int, int] | None:
    """(p, k) with q = p^k, or None."""
    if q < 2:
        return None
    p = next((d for d in range(2, int(q**0.5) + 1) if q % d == 0), q)
    k = 0
    while q % p == 0:
        q, k = q // p, k + 1
    return (p, k) if q == 1 else None


def is_prime_power(q: int) -> bool:
    return prime_power(q) is not None


def quadratic_character(q: int) -> Tensor:
    """Of an odd prime power q, int8 [q, q]: element (a, b) is 0 where a = b, 1 where b - a is a square, else -1.

    The rows follow the elements in the order of their coefficients, the highest first.
    """
    found = prime_power(q)
    assert found is not None
    assert q % 2
    p, k = found
    elements = [e[::-1] for e in itertools.product(range(p), repeat=k)]
    number = {e: i for i, e in enumerate(elements)}
    modulus = _irreducible(p, k, elements)
    squares = {_multiply(e, e, modulus, p) for e in elements[1:]}
    value = torch.tensor([0] + [1 if e in squares else -1 for e in elements[1:]], dtype=torch.int8)
    digits = torch.tensor(elements)
    differences = (digits[None] - digits[:, None]) % p
    place = torch.tensor([number[tuple(int(i == j) for j in range(k))] for i in range(k)])
    return value[(differences * place).sum(-1)]


def _multiply(a: Element, b: Element, modulus: Element, p: int) -> Element:
    """a · b reduced by the monic polynomial x^k + modulus."""
    k = len(modulus)
    product = [0] * (2 * k - 1)
    for i, j in itertools.product(range(k), repeat=2):
        product[i + j] += a[i] * b[j]
    for i in range(2 * k - 2, k - 1, -1):
        for j in range(k):
            product[i - k + j] -= product[i] * modulus[j]
    return tuple(c % p for c in product[:k])


def _irreducible(p: int, k: int, elements: list[Element]) -> Element:
    """A monic polynomial of degree k without factors, its lower coefficients: no two nonzero elements multiply to 0."""
    if k == 1:
        return (0,)
    nonzero = elements[1:]
    return next(m for m in nonzero
                if all(any(_multiply(a, b, m, p)) for a, b in itertools.combinations_with_replacement(nonzero, 2)))
