"""A model with everything that a checkpoint has to keep: tied and shared weights, root parameters, buffers, biases."""

import torch
from torch import Tensor, nn

import torchqx

WIDTH, INNER, WORDS = 32, 63, 50


class Tiny(nn.Module):
    def __init__(self, inner: int = INNER) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, inner), nn.Linear(inner, WIDTH, bias=False)
        self.first = nn.Linear(WIDTH, WIDTH)
        self.second = self.first
        self.w, self.w_b = nn.Parameter(torch.randn(WIDTH, 40) / 6), nn.Parameter(torch.randn(40, WIDTH) / 6)
        self.register_buffer("offset", torch.randn(WIDTH))
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.embed(tokens)) + self.offset
        x = x + self.down(self.up(x).relu())
        x = x + self.second(self.first(x).relu())
        x = x + (x @ self.w).relu() @ self.w_b
        return self.head(x)


def tokens() -> Tensor:
    return torch.arange(3 * 20).reshape(3, 20) % WORDS


def quantized() -> Tiny:
    """Calibrated and converted: shift and scale on, the tied head left in float."""
    recipe = torchqx.OutlierSuppressionPlusConfig(shift=True, grid_steps=3, loss="linear", activation="static")
    return torchqx.quantize(Tiny().eval(), recipe, [tokens()])


@torch.no_grad()
def output(model: nn.Module) -> Tensor:
    return model(tokens())
