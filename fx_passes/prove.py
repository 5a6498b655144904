"""Function-preserving rewrites are proved in float64 on real inputs, before against after."""

import torch
from torch import Tensor

from torchqx.errors import EquivalenceError
from torchqx.transforms import Transform

TOLERANCE = 1e-9


def relative_error(after: Tensor, before: Tensor) -> float:
    """Largest difference over the largest magnitude, in float64; 0 for two zeros."""
    after, before = after.double(), before.double()
    scale = before.abs().max()
    return float((after - before).abs().max() / scale) if scale > 0 else float(after.abs().max())


def prove_linear(site: str, rows: Tensor, weight: Tensor, transforms: list[Transform]) -> None:
    """T(X) · absorb(W)ᵀ + bias(W) = X Wᵀ.

    Args:
        rows: X [R, K], a sample of real activations.
        weight: W [N, K] or [E, N, K].

    Raises:
        EquivalenceError: the two differ by more than 1e-9 relative to the largest output.
    """
    x, w = rows.double(), weight.detach().double().flatten(0, -2)
    before, bias, after = x @ w.T, torch.zeros((), dtype=torch.float64), x
    for transform in transforms:
        extra = transform.bias(w)
        bias = bias if extra is None else bias + extra
        after, w = transform(after), transform.absorb(w)
    error = relative_error(after @ w.T + bias, before)
    if not error <= TOLERANCE:
        raise EquivalenceError(f"the transformed matmul differs by {error:.2e} in float64", where=site,
                               remedy="its transform is ill-conditioned: exclude the site or change the solver.")
