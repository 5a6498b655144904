"""Function-preserving rewrites are proved in float64 on real inputs, before against after."""

from torch import Tensor

from torchqx.errors import EquivalenceError
from torchqx.rotations import Hadamard
from torchqx.transforms import OutputRotation, Transform

TOLERANCE = 1e-9


def relative_error(after: Tensor, before: Tensor) -> float:
    """Largest difference over the largest magnitude, in float64; 0 for two zeros."""
    after, before = after.double(), before.double()
    scale = before.abs().max()
    return float((after - before).abs().max() / scale) if scale > 0 else float(after.abs().max())


def prove_linear(site: str, rows: Tensor, weight: Tensor, transform: Transform, output: Hadamard | None = None) -> None:
    """T(X) · weight(W)ᵀ + bias(W, 0) = X Wᵀ; with R_oᵀ W for W, and the result turned back, where there is R_o.

    Args:
        rows: X [R, K], a sample of real activations.
        weight: W [N, K] or [E, N, K].
        output: R_o.

    Raises:
        EquivalenceError: the two differ by more than 1e-9 relative to the largest output.
    """
    x, w = rows.double(), weight.detach().double()
    turned = OutputRotation(output).weight(w) if output is not None else w
    after = transform.activation(x) @ transform.weight(turned).transpose(-2, -1)
    after = after + transform.bias(turned, w.new_zeros(w.shape[:-1])).unsqueeze(-2)
    after = OutputRotation(output).result(after) if output is not None else after
    error = relative_error(after, x @ w.transpose(-2, -1))
    if not error <= TOLERANCE:
        raise EquivalenceError(f"the transformed matmul differs by {error:.2e} in float64", where=site,
                               remedy="its transform is ill-conditioned: exclude the site or change the solver.")
