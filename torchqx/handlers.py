"""torchao's door: ``quantize_(model, config, filter_fn)`` with a recipe as config."""

from torch.nn import Linear, Module
from torchao.quantization.transform_module import register_quantize_module_handler

from torchqx.baselines import MinMaxConfig, SmoothQuantScalingConfig
from torchqx.data_free import quantize_without_data
from torchqx.errors import ConfigError
from torchqx.hadamard import HadamardConfig
from torchqx.linear_workflow import convert_linear, prepare_linear
from torchqx.mamba_ptq import MambaPTQConfig
from torchqx.outlier_suppression_plus import OutlierSuppressionPlusConfig
from torchqx.quamba import QuambaConfig
from torchqx.recipe import AffineRecipe
from torchqx.workflow import convert, prepare

RECIPES = (OutlierSuppressionPlusConfig, SmoothQuantScalingConfig, MinMaxConfig, HadamardConfig, QuambaConfig,
           MambaPTQConfig)


def apply_step(module: Module, recipe: AffineRecipe) -> Module:
    """What ``quantize_`` calls for each module that its filter matches: a whole model, or one ``nn.Linear``."""
    single = isinstance(module, Linear)
    if recipe.step == "prepare":
        return prepare_linear(module, recipe) if single else prepare(module, recipe)
    if recipe.step == "convert":
        return convert_linear(module) if single else convert(module)
    if single:
        return quantize_without_data(module, recipe)
    raise ConfigError("quantize_ needs to know which step this is", where="step",
                      remedy="give step='prepare', calibrate, then step='convert'; or call torchqx.quantize.")


for recipe in RECIPES:
    register_quantize_module_handler(recipe)(apply_step)
