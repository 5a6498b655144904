"""One-block models and batches on which recipes are compared."""

from typing import Any

import torch
import transformers
from torch import Tensor, nn

import torchqx

COMMON = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
          "intermediate_size": 64, "max_position_embeddings": 64}
EAGER = {"lowering": "eager"}


def llama(layers: int = 1) -> nn.Module:
    config = transformers.LlamaConfig(**COMMON | {"num_hidden_layers": layers}, num_key_value_heads=1)
    return _spread(transformers.LlamaForCausalLM, config)


def bert(layers: int = 1) -> nn.Module:
    return _spread(transformers.BertModel, transformers.BertConfig(**COMMON | {"num_hidden_layers": layers}))


def _spread(kind: Any, config: Any) -> nn.Module:
    """Weights as wide as a trained model's, some channels of the norms wider than others."""
    torch.manual_seed(0)
    model = kind._from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name.lower():
                parameter.add_(torch.randn_like(parameter) * 0.5)
                parameter[:2] *= 4
            elif parameter.dim() > 1 and "embed" not in name.lower():
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
    return model


MODELS = {"llama": llama, "bert": bert}


def batch(seed: int, count: int = 4, length: int = 16) -> dict[str, Tensor]:
    """Tokens, the last two of the first text padding."""
    tokens = torch.randint(1, 96, (count, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(tokens)
    mask[0, -2:] = 0
    return {"input_ids": tokens, "attention_mask": mask}


CALIBRATION = [batch(seed) for seed in range(1, 5)]


@torch.no_grad()
def result(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """The model's first output at real tokens, [T, N]."""
    return model(**inputs)[0][inputs["attention_mask"].bool()]


def lowered(model: nn.Module) -> nn.Module:
    """``model`` as the backend rewrites it, run node by node."""
    torch._dynamo.reset()
    return torch.compile(model, backend="torchqx", options=EAGER)


def quantize(model: nn.Module, recipe: Any, batches: Any = None) -> nn.Module:
    torch._dynamo.reset()
    return torchqx.quantize(model, recipe, CALIBRATION if batches is None else batches)


def relative(result: Tensor, expected: Tensor) -> float:
    """Relative error in the Frobenius norm."""
    return float((result.double() - expected.double()).norm() / expected.double().norm())


def usual_difference(result: Tensor, expected: Tensor) -> float:
    """Median over rows of the relative difference: a value that lies between two codes may round either way, which
    changes its row, and a little every row that attends to it."""
    return float(((result - expected).norm(dim=-1) / expected.norm(dim=-1)).median())
