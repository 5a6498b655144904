"""What the speed table times: a model, a batch, and a number of tokens, fed with the same English text everywhere."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks import models

PASSAGE = Path(__file__).with_name("passage.txt")
CALIBRATION_BATCHES = 8


class EncoderStates(nn.Module):
    """An encoder that returns its last hidden states alone, [b, s, d], so that every arm returns one tensor."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        model.pooler = None  # its output is not asked for, and PT2E cannot annotate a linear that nobody reads
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


class LastLogits(nn.Module):
    """A decoder's prefill as ``generate()`` asks for it: the last token's logits, [b, 1, vocabulary]."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, use_cache=False, logits_to_keep=1).logits


@dataclass(frozen=True)
class Job:
    """A workload ready to be built: float32 module in eval mode, the timed batch, and other batches to calibrate on."""

    module: nn.Module
    inputs: dict[str, Tensor]
    calibration: list[dict[str, Tensor]]


@dataclass(frozen=True)
class Workload:
    """One row group of the speed table."""

    model: str
    batch: int
    tokens: int

    @property
    def name(self) -> str:
        return f"{self.model}-{self.batch}x{self.tokens}"

    def load(self) -> Job:
        """Build the model and its batches; every row of tokens starts at another place of the passage."""
        if self.model == "smollm2":
            model, tokenizer = models.smollm2()
            module: nn.Module = LastLogits(model)
        else:
            model, tokenizer = models.minilm()
            module = EncoderStates(models.bert_base_shape() if self.model == "bert" else model)
        stream = tokenizer(PASSAGE.read_text(encoding="utf-8"), return_tensors="pt", verbose=False).input_ids[0]
        batches = [self._batch(stream, index) for index in range(CALIBRATION_BATCHES + 1)]
        return Job(module.eval(), batches[-1], batches[:-1])

    def _batch(self, stream: Tensor, index: int) -> dict[str, Tensor]:
        # 37 tokens between one row's start and the next: no two rows are alike before the passage comes round again.
        starts = 37 * (index * self.batch + torch.arange(self.batch))
        positions = starts[:, None] + torch.arange(self.tokens)
        input_ids = stream[positions % stream.numel()]
        if self.model == "smollm2":
            return {"input_ids": input_ids}
        return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("minilm", 1, 128),
        Workload("minilm", 8, 128),
        Workload("bert", 1, 128),
        Workload("bert", 8, 128),
        Workload("smollm2", 1, 128),
        Workload("smollm2", 1, 512),
    )
}
