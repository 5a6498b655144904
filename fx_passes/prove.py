"""Function-preserving rewrites are proved in float64 on real inputs, before against after."""

from torch import Tensor

from torchqx.errors import EquivalenceError
from torchqx.transforms import Transform

TOLERANCE = 1e-9


def relative_error(after: Tensor, before: Tensor) -> float:
    """Largest difference over the largest magnitude, in float64; 0 for two zeros."""
    after, before = after.double(), before.double()
    scale = before.abs().max()
    return float((after - before).abs().max() / scale) if scale > 0 else float(after.abs().max())


def prove_linear(site: str, rows: Tensor, weight: Tensor, transform: Transform) -> None:
    """T(X) · weight(W)ᵀ + bias(W, 0) = X Wᵀ.

    Args:
        rows: X [R, K], a sample of real activations.
        weight: W [N, K] or [E, N, K].

    Raises:
        EquivalenceError: the two differ by more than 1e-9 relative to the largest output.
    """
    x, w = rows.double(), weight.detach().double().flatten(0, -2)
    after = transform.activation(x) @ transform.weight(w).T + transform.bias(w, w.new_zeros(len(w)))
    error = relative_error(after, x @ w.T)
    if not error <= TOLERANCE:
        raise EquivalenceError(f"the transformed matmul differs by {error:.2e} in float64", where=site,
                               remedy="its transform is ill-conditioned: exclude the site or change the solver.")
