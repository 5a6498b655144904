"""Small random-weight models of every architecture that transformers builds from Mamba's or Mamba2's scan."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor

VOCABULARY = 128
WIDTH = 32
STATES = 8

_COMMON = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "pad_token_id": 0,
           "bos_token_id": 1, "eos_token_id": 2}
_ATTENTION = _COMMON | {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64,
                        "max_position_embeddings": 256}
_ZAMBA = _ATTENTION | {"num_key_value_heads": 4, "mamba_d_state": STATES}
_HEADS = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": STATES, "mamba_chunk_size": 16}


def _build(name: str, settings: dict[str, Any]) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**settings)
    model = getattr(transformers, f"{name}ForCausalLM")._from_config(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "A_log" not in parameter_name:  # wide enough that every token matters
                parameter.normal_(0, min(0.3, parameter[0].numel() ** -0.5))
    return model.requires_grad_(False)


_SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("Mamba", _COMMON | {"state_size": STATES}),
    "falcon_mamba": ("FalconMamba", _COMMON | {"state_size": STATES}),
    "jamba": ("Jamba", _ATTENTION | {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
                                     "expert_layer_offset": 1, "num_experts": 2, "num_experts_per_tok": 1,
                                     "mamba_d_state": STATES, "mamba_dt_rank": 4}),
    "zamba": ("Zamba", _ZAMBA | {"num_hidden_layers": 3, "layers_block_type": ["hybrid", "mamba", "hybrid"],
                                 "n_mamba_heads": 2, "mamba_dt_rank": 4}),
    "mamba2": ("Mamba2", _COMMON | {"state_size": STATES, "num_heads": 4, "head_dim": 16, "n_groups": 2,
                                    "chunk_size": 16}),
    "bamba": ("Bamba", _ATTENTION | _HEADS | {"attn_layer_indices": [1], "mamba_n_groups": 1}),
    "zamba2": ("Zamba2", _ZAMBA | {"n_mamba_heads": 4, "chunk_size": 16, "mamba_ngroups": 1, "hybrid_layer_ids": [1],
                                   "layers_block_type": ["mamba", "hybrid"], "num_mem_blocks": 1, "adapter_rank": 4}),
    "falcon_h1": ("FalconH1", _ATTENTION | _HEADS | {"mamba_d_ssm": 64, "mamba_n_groups": 1}),
    "granitemoehybrid": ("GraniteMoeHybrid", _ATTENTION | _HEADS | {
        "layer_types": ["mamba", "attention"], "mamba_n_groups": 1, "num_local_experts": 2, "num_experts_per_tok": 1,
        "shared_intermediate_size": 32}),
    "nemotron_h": ("NemotronH", _ATTENTION | {
        "layers_block_type": ["mamba", "attention", "mlp"], "num_hidden_layers": 3, "head_dim": 8,
        "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": STATES, "chunk_size": 16}),
}  # fmt: skip
MODELS: dict[str, Callable[[], transformers.PreTrainedModel]] = {
    name: partial(_build, *settings) for name, settings in _SETTINGS.items()
}
MAMBA1 = ("mamba", "falcon_mamba", "jamba", "zamba")


def prompt(rows: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    """Tokens; the first row is padded on the left."""
    tokens = torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(tokens)
    mask[0, :3], tokens[0, :3] = 0, 0
    return {"input_ids": tokens, "attention_mask": mask}
