"""What the speed table times: a model, a batch, and a number of tokens, fed with the same English text everywhere."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from benchmarks import models
from benchmarks.jobs import EncoderStates, ImageStates, Job, LastLogits, NextLogits
from benchmarks.memory import keep_memory

PASSAGE = Path(__file__).with_name("passage.txt")
CALIBRATION_BATCHES = 8
DECODERS = ("smollm2", "gpt2", "llama")
POSITIONS = 2048


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
        """Build the model and its batches."""
        disable_progress_bar()
        if self.model == "vit":
            random = torch.Generator().manual_seed(0)
            images = [{"pixel_values": torch.randn(self.batch, 3, 224, 224, generator=random)}
                      for _ in range(CALIBRATION_BATCHES + 1)]
            return Job(ImageStates(models.vit_base_shape()).eval(), images[-1], images[:-1])
        model, tokenizer = models.smollm2() if self.model == "smollm2" else models.minilm()
        batches = token_batches(tokenizer, self.batch, self.tokens)
        if self.model not in DECODERS:
            return _encoder_job(models.bert_shape() if self.model == "bert" else model, batches)
        decoder = {"gpt2": models.gpt2_shape, "llama": models.llama_small_shape}.get(self.model, lambda: model)()
        # A step is calibrated on text too, as a decoder is: eight tokens would say little of others.
        module = NextLogits(decoder, batches[0]) if self.step else LastLogits(decoder)
        timed = batches[-1][:, :1] if self.step else batches[-1]
        return Job(module.eval(), {"input_ids": timed}, [{"input_ids": ids} for ids in batches[:-1]])


@dataclass(frozen=True)
class Encoder:
    """A pass over ``batch`` rows of ``tokens`` through a BERT of any width and depth, for the tables of growth."""

    width: int
    layers: int
    batch: int
    tokens: int

    @property
    def name(self) -> str:
        return f"bert-{self.width}w-{self.layers}l-{self.batch}x{self.tokens}"

    def load(self) -> Job:
        """Build the model and its batches."""
        disable_progress_bar()
        _, tokenizer = models.minilm()
        model = models.bert_shape(self.width, self.layers, POSITIONS)
        return _encoder_job(model, token_batches(tokenizer, self.batch, self.tokens))


@dataclass(frozen=True)
class Kernel:
    """One call of a kernel, by its case's name in ``benchmarks.kernels``; nothing of torchqx is needed to name it."""

    name: str

    def load(self) -> "Kernel":
        """Nothing to load: the arm makes the operands. Its process keeps what memory it gets."""
        keep_memory()
        return self


def token_batches(tokenizer: PreTrainedTokenizerBase, batch: int, tokens: int) -> list[Tensor]:
    """Batches int64 [batch, tokens] of the passage, every row from another place on; the last is for timing."""
    stream = tokenizer(PASSAGE.read_text(encoding="utf-8"), return_tensors="pt", verbose=False).input_ids[0]
    # 37 tokens between one row's start and the next: no two rows are alike before the passage comes round again.
    rows = (CALIBRATION_BATCHES + 1) * batch
    positions = 37 * torch.arange(rows)[:, None] + torch.arange(tokens)
    return list(stream[positions % stream.numel()].split(batch))


def _encoder_job(model: PreTrainedModel, batches: list[Tensor]) -> Job:
    *calibration, timed = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in batches]
    return Job(EncoderStates(model).eval(), timed, calibration)


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

SMALL = (
    Kernel("int8 linear 1 x 768 x 3072"),
    Kernel("int8 linear 16 x 384 x 1536"),
    Kernel("int8 linear 128 x 384 x 1536"),
    Kernel("int8 linear 128 x 3072 x 768"),
    Kernel("int8 linear 1024 x 768 x 768"),
    Kernel("hadamard float32 512 x 576"),
    Kernel("hadamard bfloat16 512 x 2048"),
    Kernel("attention BERT 1 x 12 x 12 x 128 x 64"),
    Kernel("scan 512 steps"),
    Workload("minilm", 1, 128),
    Workload("llama", 1, 128),
    Workload("llama", 1, 128, step=True),
)
