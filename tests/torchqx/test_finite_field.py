"""Prime powers and squares in finite fields."""

import pytest
import torch

from torchqx.finite_field import is_prime_power, prime_power, quadratic_character


def test_prime_powers():
    assert [q for q in range(-1, 33) if is_prime_power(q)] == [
        2, 3, 4, 5, 7, 8, 9, 11, 13, 16, 17, 19, 23, 25, 27, 29, 31, 32]
    assert prime_power(343) == (7, 3)


@pytest.mark.parametrize("q", [7, 13])
def test_squares_modulo_a_prime(q):
    squares = {a * a % q for a in range(1, q)}
    expected = [[0 if a == b else 1 if (b - a) % q in squares else -1 for b in range(q)] for a in range(q)]
    assert torch.equal(quadratic_character(q), torch.tensor(expected, dtype=torch.int8))


@pytest.mark.parametrize("q", [5, 9, 25, 27, 49])
def test_jacobsthal_identities(q):
    c = quadratic_character(q).long()
    assert torch.equal(c.T, c if q % 4 == 1 else -c)
    assert torch.equal(c @ c.T, q * torch.eye(q, dtype=torch.long) - 1)
    assert not c.sum(0).any()
