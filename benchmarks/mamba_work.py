"""What the speed table of state-space models times: a Mamba of any size with random weights. It needs no torchqx."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel

from benchmarks.jobs import Job

CALIBRATION_TOKENS, CALIBRATION_STEPS = 64, 8
SCAN_OPERATIONS = 7  # multiply-adds per state and step in the scan's inner loop; the exponential takes 4 of them


class Run(nn.Module):
    """The last token's logits [1, 1, vocabulary]: of a pass over ``input_ids``, or of one token after earlier ones,
    whose states the module holds and every call moves on."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model, self.cache = model, None

    @torch.no_grad()
    def read(self, past: Tensor) -> None:
        """Make every call a step after ``past``; once the module has its dtype."""
        self.cache = self.model(input_ids=past, use_cache=True, logits_to_keep=1).cache_params

    def forward(self, input_ids: Tensor) -> Tensor:
        steps = self.cache is not None
        return self.model(input_ids=input_ids, cache_params=self.cache, use_cache=steps, logits_to_keep=1).logits


@dataclass(frozen=True)
class StateSpaceJob(Job):
    """A job, and what to read before its first step; None for a pass."""

    past: Tensor | None = None


@dataclass(frozen=True)
class MambaWork:
    """A pass over ``tokens`` tokens, or a step of decoding (``tokens`` is 1)."""

    layers: int
    width: int
    vocabulary: int
    tokens: int

    @property
    def name(self) -> str:
        return f"mamba-{self.layers}l-{self.width}w-" + (f"{self.tokens}" if self.tokens > 1 else "step")

    def config(self) -> MambaConfig:
        return MambaConfig(vocab_size=self.vocabulary, hidden_size=self.width, num_hidden_layers=self.layers)

    def load(self) -> StateSpaceJob:
        """Build the model, float32, and its tokens."""
        torch.manual_seed(0)
        model = MambaForCausalLM(self.config()).eval().requires_grad_(False)

        def drawn(length: int) -> dict[str, Tensor]:
            return {"input_ids": torch.randint(self.vocabulary, (1, length))}

        if self.tokens > 1:
            return StateSpaceJob(Run(model), drawn(self.tokens), [drawn(CALIBRATION_TOKENS)])
        steps = [drawn(1) for _ in range(CALIBRATION_STEPS + 1)]
        return StateSpaceJob(Run(model), steps[-1], steps[:-1], drawn(4)["input_ids"])

    def multiply_adds(self) -> tuple[int, int]:
        """Of the matmuls, and of the scans (:data:`SCAN_OPERATIONS` for each state and step)."""
        c = self.config()
        inner, out = c.intermediate_size, c.time_step_rank + 2 * c.state_size
        linear = c.hidden_size * 2 * inner + inner * out + c.time_step_rank * inner + inner * c.hidden_size
        scan = inner * c.state_size * SCAN_OPERATIONS
        head = c.hidden_size * c.vocab_size  # of the last token only
        return c.num_hidden_layers * linear * self.tokens + head, c.num_hidden_layers * scan * self.tokens
