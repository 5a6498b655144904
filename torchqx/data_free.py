"""Quantizing a linear without calibration: only where nothing about its inputs has to be known."""

from torch.nn import Linear, Parameter

from torchqx.baselines import MinMaxConfig
from torchqx.errors import AlreadyQuantizedError, ConfigError
from torchqx.layouts import WeightLayout
from torchqx.plan import SiteRecord, records_to_json
from torchqx.quantize_weight import SiteParameters, quantize_weight
from torchqx.recipe import AffineRecipe
from torchqx.solve import describe
from torchqx.storage import QuantizedWeight

KEY = ":linear:0"


def quantize_without_data(module: Linear, recipe: AffineRecipe) -> Linear:
    """Put the storage tensor of ``module``'s weight [N, K] in place and return ``module``.

    Raises:
        ConfigError: ``recipe`` has to see data, or chooses by site keys, which one linear does not know.
        AlreadyQuantizedError: it is quantized already.
        NonFiniteError: the weight holds NaN or Inf. The module stays as it was.
    """
    quantizer = recipe.activation_ladder()[0]
    if not isinstance(recipe, MinMaxConfig) or not quantizer.dynamic:
        raise ConfigError(f"{type(recipe).__name__}(activation={recipe.activation!r}) has to see data", where="step",
                          remedy="give step='prepare', calibrate, then step='convert'; or call torchqx.quantize; or "
                                 "take MinMaxConfig(activation='token').")
    if recipe.include != ["*"] or recipe.exclude:
        raise ConfigError("a linear on its own does not know its site key", where="include, exclude",
                          remedy="choose modules by torchao's FqnToConfig.")
    if isinstance(module.weight, QuantizedWeight):
        raise AlreadyQuantizedError("the linear is quantized already", where=repr(module),
                                    remedy="start from the float model.")
    weight, spec = module.weight, recipe.weight_quantizer()
    quantized = quantize_weight(weight, WeightLayout.OUT_IN, KEY, SiteParameters(quantizer, spec))
    parts, _ = quantized.__tensor_flatten__()
    record = SiteRecord(KEY, "linear", "quantized", operations=[KEY], weights=["weight"],
                        activation=describe(quantizer), weight=describe(spec), bytes_before=weight.nbytes,
                        bytes_after=sum(getattr(quantized, part).nbytes for part in parts), macs=weight.numel())
    quantized.plan = records_to_json([record])
    module.weight = Parameter(quantized, requires_grad=False)
    return module
