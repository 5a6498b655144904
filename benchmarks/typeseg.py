"""TypeSeg, a real trained Mamba: bytes of a text -> which of 35 file types each belongs to.

Its scan runs in both directions. The weights come from the package ``typeseg`` (Apache-2.0), whose code is not used.
"""

import json
import sysconfig
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchqx
from benchmarks.models import ModelMissingError

WIDTH, STATES, RANK, LAYERS, TAPS = 256, 16, 16, 6, 4
SMALLEST_STEP = 1e-4
SPACES = (9, 10, 13)
PLACEHOLDER, PLACEHOLDER_CODE, CODES = 0xA4, 128, 130
EXTENSIONS = {".py": "python", ".h": "c_family", ".cpp": "c_family", ".json": "json", ".js": "javascript_typescript",
              ".css": "css", ".html": "html", ".md": "markdown", ".yaml": "yaml", ".sh": "shell", ".csv": "csv",
              ".rst": "restructuredtext", ".xml": "xml", ".java": "java", ".f90": "text", ".txt": "text"}  # fmt: skip
SKIPPED = ("text",)  # licences and lists of file names: no right answer


class Block(nn.Module):
    """x + out_proj((scan(u) + reversed scan(u)) · silu(gate)), with u = silu(conv(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.in_proj = nn.Linear(WIDTH, 2 * WIDTH)
        self.conv1d = nn.Conv1d(WIDTH, WIDTH, TAPS, groups=WIDTH)
        self.x_proj = nn.Linear(WIDTH, RANK + 2 * STATES)
        self.dt_proj = nn.Linear(RANK, WIDTH)
        self.A_log = nn.Parameter(torch.empty(WIDTH, STATES))
        self.D = nn.Parameter(torch.empty(WIDTH))
        self.out_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        u, gate = self.in_proj(self.norm(x)).transpose(1, 2).chunk(2, 1)
        ahead = F.pad(u, (0, 2))  # a step sees one input before it and two after it
        u = torchqx.causal_conv1d(ahead, self.conv1d.weight.squeeze(1), self.conv1d.bias, "silu")[..., 2:]
        dt, b, c = self.x_proj(u.transpose(1, 2)).split([RANK, STATES, STATES], -1)
        dt = self.dt_proj(dt).transpose(1, 2)
        dt = torch.log(torch.expm1(F.softplus(dt) + SMALLEST_STEP))  # softplus of this is softplus(dt) + 1e-4
        a, b, c = -torch.exp(self.A_log), b.transpose(1, 2), c.transpose(1, 2)
        forwards = torchqx.selective_scan(u, dt, a, b, c, self.D, gate, delta_softplus=True)
        turned = (t.flip(-1) for t in (u, dt, b, c, gate))
        u, dt, b, c, gate = turned
        backwards = torchqx.selective_scan(u, dt, a, b, c, self.D, gate, delta_softplus=True).flip(-1)
        return x + self.out_proj((forwards + backwards).transpose(1, 2))


class TypeSeg(nn.Module):
    """int64 bytes [B, L] -> logits [B, L, 35]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(CODES, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, text: Tensor) -> Tensor:
        x = self.embed(text.clamp(max=PLACEHOLDER_CODE))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@cache
def folder() -> Path:
    """The package's data. Raises ModelMissingError."""
    package = find_spec("typeseg")
    if package is None:
        raise ModelMissingError("typeseg")
    return Path(package.submodule_search_locations[0]) / "data"


def labels() -> list[str]:
    return json.loads((folder() / "manifest.json").read_text())["labels"]


def typeseg() -> TypeSeg:
    """The model with its weights, float32, in eval mode. Raises ModelMissingError."""
    model = TypeSeg(len(labels())).eval().requires_grad_(False)
    with np.load(folder() / "mamba_al.npz") as stored:
        state = {_name(key): _value(key, torch.from_numpy(stored[key])) for key in stored.files}
    model.load_state_dict(state)
    return model


_PARTS = {"LayerNorm_0": "norm", "Conv_0": "conv1d", "Dense_0": "in_proj", "Dense_1": "x_proj", "Dense_2": "dt_proj",
          "Dense_3": "out_proj", "A_log": "A_log", "D": "D"}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "embedding": "weight"}


def _name(key: str) -> str:
    block, *rest = key.split("__")
    if block.startswith("CheckpointMambaBlock1D_"):
        parts = [_PARTS[rest[0]], *(_LEAVES[leaf] for leaf in rest[1:])]
        return ".".join(["blocks", block.rpartition("_")[2], *parts])
    return {"Embed_0": "embed", "LayerNorm_0": "norm", "Dense_0": "head"}[block] + "." + _LEAVES[rest[0]]


def _value(key: str, stored: Tensor) -> Tensor:
    if key.endswith("Conv_0__kernel"):
        return stored.permute(2, 1, 0).contiguous()  # [taps, 1, channels]
    return stored.t().contiguous() if key.endswith("kernel") else stored


def encode(text: bytes) -> Tensor:
    """int64 [L]: bytes that the model was not trained on become one placeholder."""
    kept = torch.tensor(list(text))
    return torch.where((kept >= 0x20) & (kept < 0x7F) | torch.isin(kept, torch.tensor(SPACES)), kept, PLACEHOLDER)


def snippets(length: int, per_type: int, skip: int = 0) -> Iterator[tuple[Tensor, int]]:
    """Pieces of source files in the Python installation, int64 [length], with the index of their type.

    Args:
        per_type: at most so many of each type, from different folders first; ``skip`` so many before.
    """
    known, root = labels(), Path(sysconfig.get_paths()["purelib"])
    for extension, label in EXTENSIONS.items():
        if label in SKIPPED:
            continue
        files = sorted(root.rglob(f"*{extension}"), key=lambda p: (hash_of(p.name), p.as_posix()))
        found = 0
        for path in files:
            text = path.read_bytes()
            if len(text) < 2 * length:
                continue
            found += 1
            if found > skip + per_type:
                break
            if found > skip:
                start = (len(text) - length) // 2
                yield encode(text[start : start + length]), known.index(label)


def hash_of(name: str) -> int:
    """A fixed shuffle of file names."""
    return sum((i + 1) * 7919 * byte for i, byte in enumerate(name.encode())) % 1000003


@torch.no_grad()
def byte_accuracy(model: nn.Module, pieces: list[tuple[Tensor, int]], batch: int = 8) -> float:
    """The share of bytes whose most likely type is their file's."""
    right = total = 0
    for at in range(0, len(pieces), batch):
        texts = torch.stack([text for text, _ in pieces[at : at + batch]])
        wanted = torch.tensor([label for _, label in pieces[at : at + batch]])
        right += int((model(texts).argmax(-1) == wanted[:, None]).sum())
        total += texts.numel()
    return right / total
