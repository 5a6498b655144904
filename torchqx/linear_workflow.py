"""Prepare and convert for one ``nn.Linear`` on its own, as torchao's default filter hands modules over.

Without the model's graph there is no group, no padding mask, and no attention to compare: a forward hook observes, and
the site's loss is on its own outputs.
"""

from typing import Any

import torch
from torch.nn import Linear, Module, Parameter

from torchqx.errors import AlreadyQuantizedError, ConfigError, NotPreparedError, UnsupportedError
from torchqx.fx_passes.sites import Form
from torchqx.layouts import WeightLayout
from torchqx.plan import records_to_json
from torchqx.recipe import AffineRecipe
from torchqx.site_state import Operation, SiteState
from torchqx.solve import solve_site
from torchqx.storage import QuantizedWeight

PREPARED = "_torchqx_linear"


def prepare_linear(module: Linear, recipe: AffineRecipe) -> Linear:
    """Observe ``module``'s inputs from now on. Raises AlreadyQuantizedError if it is quantized or prepared."""
    if isinstance(module.weight, QuantizedWeight) or PREPARED in module.__dict__:
        raise AlreadyQuantizedError("the linear is quantized or prepared already", where=repr(module),
                                    remedy="start from the float model.")
    if recipe.include != ["*"] or recipe.exclude or recipe.calibration == "sequential":
        raise ConfigError("a linear on its own knows neither its site key nor the sites before it",
                          where="include, exclude, calibration",
                          remedy="choose modules by torchao's FqnToConfig, or take filter_fn=torchqx.whole_model.")
    state = SiteState(":linear:0", [Operation(":linear:0", WeightLayout.OUT_IN, "weight")], Form.LINEAR, recipe)
    state.adopt(module.weight, 0)
    state.biases = [module.bias]

    @torch.compiler.disable
    def observe(_: Module, args: tuple[Any, ...]) -> None:
        if torch._C._functorch.is_functorch_wrapped_tensor(args[0]):
            raise UnsupportedError("calibration under torch.func.vmap or grad", where=repr(module),
                                   remedy="call the model on plain tensors, or do not prepare this linear.")
        state.observe(args[0], None)

    module.__dict__[PREPARED] = state, module.register_forward_pre_hook(observe)
    return module


def convert_linear(module: Linear) -> Linear:
    """Solve and put the storage tensor in place; a linear over its error budget stays float.

    Raises:
        NotPreparedError: it was not prepared; else as :func:`torchqx.solve.solve_site`, the module left as it was.
    """
    if PREPARED not in module.__dict__:
        raise NotPreparedError("the linear was not prepared", where=repr(module),
                               remedy="call quantize_ with step='prepare' and calibrate first.")
    state, hook = module.__dict__[PREPARED]
    with torch.inference_mode(False), torch.no_grad():
        solve_site(state, [module.weight])
        quantized = state.quantized(module.weight)
        if quantized is not None:
            quantized.plan = records_to_json([state.record])
            module.weight = Parameter(quantized, requires_grad=False)
    hook.remove()
    del module.__dict__[PREPARED]
    return module
