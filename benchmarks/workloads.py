"""What the speed table times: a model, a batch, and a number of tokens, fed with the same English text everywhere."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from benchmarks import models

PASSAGE = Path(__file__).with_name("passage.txt")
CALIBRATION_BATCHES = 8
DECODERS = ("smollm2", "gpt2")


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
        layers = range(self.model.config.num_hidden_layers)
        cache = DynamicCache([(getattr(self, f"keys_{i}"), getattr(self, f"values_{i}")) for i in layers])
        return self.model(input_ids=input_ids, past_key_values=cache, use_cache=True).logits


@dataclass(frozen=True)
class Job:
    """A workload ready to be built: float32 module in eval mode, the timed batch, and other batches to calibrate on."""

    module: nn.Module
    inputs: dict[str, Tensor]
    calibration: list[dict[str, Tensor]]


@dataclass(frozen=True)
class Workload:
    """One row group of the speed table: a pass over ``tokens`` tokens, or one token after them (``step``)."""

    model: str
    batch: int
    tokens: int
    step: bool = False

    @property
    def name(self) -> str:
        return f"{self.model}-{self.batch}x{self.tokens}" + ("-step" if self.step else "")

    def load(self) -> Job:
        """Build the model and its batches; every row of tokens starts at another place of the passage."""
        if self.model == "vit":
            random = torch.Generator().manual_seed(0)
            images = [{"pixel_values": torch.randn(self.batch, 3, 224, 224, generator=random)}
                      for _ in range(CALIBRATION_BATCHES + 1)]
            return Job(ImageStates(models.vit_base_shape()).eval(), images[-1], images[:-1])
        model, tokenizer = models.smollm2() if self.model == "smollm2" else models.minilm()
        stream = tokenizer(PASSAGE.read_text(encoding="utf-8"), return_tensors="pt", verbose=False).input_ids[0]
        batches = [self._batch(stream, index) for index in range(CALIBRATION_BATCHES + 1)]
        if self.model not in DECODERS:
            module: nn.Module = EncoderStates(models.bert_base_shape() if self.model == "bert" else model)
            batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in batches]
            return Job(module.eval(), batches[-1], batches[:-1])
        decoder = models.gpt2_shape() if self.model == "gpt2" else model
        if self.step:
            module = NextLogits(decoder, batches[0])
            batches = [ids[:, i : i + 1] for i, ids in enumerate(batches)]
        else:
            module = LastLogits(decoder)
        return Job(module.eval(), {"input_ids": batches[-1]}, [{"input_ids": ids} for ids in batches[:-1]])

    def _batch(self, stream: Tensor, index: int) -> Tensor:
        # 37 tokens between one row's start and the next: no two rows are alike before the passage comes round again.
        starts = 37 * (index * self.batch + torch.arange(self.batch))
        positions = starts[:, None] + torch.arange(self.tokens)
        return stream[positions % stream.numel()]


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("minilm", 1, 128),
        Workload("minilm", 8, 128),
        Workload("bert", 1, 128),
        Workload("bert", 8, 128),
        Workload("vit", 1, 197),
        Workload("smollm2", 1, 128),
        Workload("smollm2", 1, 512),
        Workload("smollm2", 1, 128, step=True),
        Workload("gpt2", 1, 128),
    )
}
