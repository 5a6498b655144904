"""What a transformers model needs to save itself quantized: the quantizer and config that its loader would have set.

The storage tensor's component names are ones that transformers' torchao loader knows, so its own quantizer serves.
"""

from dataclasses import replace

import transformers
from torch.nn import Module
from torchao.core.config import AOBaseConfig

from torchqx.recipe import AffineRecipe
from torchqx.storage import QuantizedWeight


def attach(model: Module, config: AOBaseConfig) -> Module:
    """Make ``save_pretrained`` of ``model``, and of transformers models inside it, write the quantized weights.

    Models of other kinds, and those without a quantized weight, stay as they are. The saved directory loads with
    ``from_pretrained`` in any process that has imported torchqx. Returns ``model``.

    Args:
        config: what the model was quantized with: a recipe, or torchao's FqnToConfig. It is saved as information;
            loading does not quantize again.
    """
    if isinstance(config, AffineRecipe):
        config = replace(config, step=None)
    for module in model.modules():
        if _pretrained(module) and any(isinstance(p, QuantizedWeight) for p in module.parameters()):
            wrapped = transformers.TorchAoConfig(config)
            module.hf_quantizer = transformers.quantizers.auto.TorchAoHfQuantizer(wrapped, pre_quantized=True)
            module.config.quantization_config = wrapped
            module.quantization_method, module.is_quantized = wrapped.quant_method, True
            module.config._is_quantized = True
    return model


def _pretrained(module: Module) -> bool:
    # By name: asking for the class would import all of transformers' modeling code for models of other kinds.
    return any(c.__module__ == "transformers.modeling_utils" and c.__name__ == "PreTrainedModel"
               for c in type(module).__mro__)
