"""A small Mamba and a small Mamba2 trained on Python's own reference: ``python -m benchmarks.train_mamba``.

Bytes of the text that ``help()`` shows (the package ``pydoc_data`` of every Python), every tenth topic held out.
Minutes on one core; the weights are kept in torch's cache folder, so whoever asks for them again has them at once.
"""

import hashlib
import math
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import Annotated, Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM, PreTrainedModel
from transformers.models.mamba import modeling_mamba

import torchqx

VOCABULARY = 128
HELD_OUT = 10
SETTINGS = {"vocab_size": VOCABULARY, "hidden_size": 128, "num_hidden_layers": 2, "state_size": 8, "use_bias": True,
            "tie_word_embeddings": False, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
HEADS = {"num_heads": 8, "head_dim": 32, "n_groups": 1, "state_size": 32, "chunk_size": 64}
STEPS, ROWS, LENGTH, RATE, WARM_UP = 300, 16, 128, 5e-3, 30
ROWS_AT_ONCE = 2  # so that the states of all steps, which the gradient needs, stay in the processor's cache


def build(kind: str, **changed: object) -> PreTrainedModel:
    """"mamba" or "mamba2" with random weights, float32; ``changed`` settings replace the usual ones."""
    torch.manual_seed(0)
    if kind == "mamba":
        return MambaForCausalLM(MambaConfig(**SETTINGS | changed))
    return Mamba2ForCausalLM(Mamba2Config(**SETTINGS | HEADS | changed))


def text(held_out: bool) -> Tensor:
    """Bytes of the topics to train on, or of those held out, one after the other: int64 [N]."""
    names = [n for i, n in enumerate(sorted(topics)) if (i % HELD_OUT == 0) == held_out]
    content = "\n\n".join(topics[n] for n in names).encode("ascii", "replace")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).long()


def windows(held_out: bool, count: int, length: int, seed: int = 0) -> Tensor:
    """``count`` pieces of the text from random places: int64 [count, length]."""
    stream = text(held_out)
    starts = torch.randint(len(stream) - length, (count,), generator=torch.Generator().manual_seed(seed))
    return stream[starts[:, None] + torch.arange(length)]


def unigram_loss() -> float:
    """Cross-entropy of the held-out bytes under the training text's byte frequencies, with one added to each."""
    counts = torch.bincount(text(held_out=False), minlength=VOCABULARY) + 1.0
    return float(-(counts / counts.sum()).log()[text(held_out=True)].mean())


def loss(model: PreTrainedModel, rows: Tensor) -> Tensor:
    """Mean cross-entropy of each byte after a row's first."""
    logits = model(input_ids=rows, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


def _accumulated(model: PreTrainedModel, rows: Tensor) -> float:
    """The loss of some of a step's rows, whose share of the gradient is added to the parameters'."""
    value = loss(model, rows)
    (value * len(rows) / ROWS).backward()
    return float(value.detach())


def _scan(*args: Any, use_mambapy: bool, use_associative_scan: bool, **named: Any) -> Tensor:
    return torchqx.selective_scan(*args, **named)


def train(kind: str, steps: int = STEPS) -> PreTrainedModel:
    """Train from random weights: AdamW, a warm-up, then a cosine down to nothing. The same on every run."""
    model = build(kind).train()
    stream, places = text(held_out=False), torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    for step in range(steps):
        progress = max(0, step - WARM_UP) / max(1, steps - WARM_UP)
        rate = RATE * min((step + 1) / WARM_UP, (1 + math.cos(math.pi * progress)) / 2)
        optimizer.param_groups[0]["lr"] = rate
        starts = torch.randint(len(stream) - LENGTH, (ROWS, 1), generator=places)
        rows = stream[starts + torch.arange(LENGTH)]
        with patch.object(modeling_mamba, "mamba_selective_scan", _scan):  # theirs is a loop over the steps
            value = sum(_accumulated(model, part) * len(part) / ROWS for part in rows.split(ROWS_AT_ONCE))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"{kind}: step {step}, loss {value:.3f}", flush=True)
    return model.eval().requires_grad_(False)


def trained(kind: str) -> PreTrainedModel:
    """The trained model in eval mode: from the cache, or trained now."""
    settings = f"{SETTINGS} {HEADS} {STEPS} {ROWS} {LENGTH} {RATE} {WARM_UP}".encode()
    made_from = hashlib.sha256(settings + bytes(text(held_out=False).to(torch.uint8).tolist())).hexdigest()
    path = Path(torch.hub.get_dir()).parent / "torchqx" / f"{kind}-{made_from[:16]}.safetensors"
    if not path.is_file():
        model = train(kind)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: t.contiguous() for name, t in model.state_dict().items()}, path)
    model = build(kind).eval().requires_grad_(False)
    model.load_state_dict(load_file(path))
    return model


def main(threads: Annotated[int, typer.Option(min=1)] = torch.get_num_threads()) -> None:
    """Train what is not in the cache yet, and compare each with a unigram model."""
    torch.set_num_threads(threads)
    rows = windows(held_out=True, count=32, length=512)
    for kind in ("mamba", "mamba2"):
        started = time.perf_counter()
        model = trained(kind)
        with torch.no_grad():
            print(f"{kind}: held-out loss {float(loss(model, rows)):.3f}, unigram {unigram_loss():.3f} nats per byte, "
                  f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    typer.run(main)
