"""What an arm builds: a module that returns one tensor, and its batches."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


class EncoderStates(nn.Module):
    """An encoder that returns its last hidden states alone, [b, s, d], so that every arm returns one tensor."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        model.pooler = None  # its output is not asked for, and PT2E cannot annotate a linear that nobody reads
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


class ImageStates(nn.Module):
    """An image encoder that returns its last hidden states alone, [b, s, d]."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        model.pooler = None
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values=pixel_values).last_hidden_state


class LastLogits(nn.Module):
    """A decoder's prefill as ``generate()`` asks for it: the last token's logits, [b, 1, vocabulary]."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, use_cache=False, logits_to_keep=1).logits


class NextLogits(nn.Module):
    """One step of decoding after ``past`` tokens, whose keys and values the module holds: [b, 1, vocabulary]."""

    def __init__(self, model: PreTrainedModel, past: Tensor) -> None:
        super().__init__()
        self.model = model
        with torch.no_grad():
            cache = model(input_ids=past, use_cache=True, logits_to_keep=1).past_key_values
        for i, layer in enumerate(cache.layers):
            self.register_buffer(f"keys_{i}", layer.keys.clone(), persistent=False)
            self.register_buffer(f"values_{i}", layer.values.clone(), persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        cache = DynamicCache()
        for i in range(self.model.config.num_hidden_layers):
            cache.layers.append(_read(getattr(self, f"keys_{i}"), getattr(self, f"values_{i}")))
        return self.model(input_ids=input_ids, past_key_values=cache, use_cache=True).logits


def _read(keys: Tensor, values: Tensor) -> DynamicLayer:
    """A cache's layer that holds these already. (Updating an empty one would join them to an empty tensor of one
    dimension, which not every exporter takes.)"""
    layer = DynamicLayer()
    layer.keys, layer.values = keys, values
    layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
    return layer


@dataclass(frozen=True)
class Job:
    """A workload ready to be built: float32 module in eval mode, the timed batch, and other batches to calibrate on.

    The module takes both; those to calibrate on may be longer.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    calibration: list[dict[str, Tensor]]

    def cut_calibration(self) -> list[dict[str, Tensor]]:
        """The batches to calibrate on in the timed batch's shapes, for a graph that was exported for no others."""
        return [{name: value[tuple(map(slice, self.inputs[name].shape))] for name, value in batch.items()}
                for batch in self.calibration]
