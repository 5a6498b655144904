"""What the accuracy tables report: Spearman correlation of sentence similarity, and perplexity over text windows."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from benchmarks.data import SickPair

SENTENCE_TOKENS = 128


def sentence_batches(
    tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str], size: int = 32
) -> Iterator[dict[str, Tensor]]:
    """Batches of ``size`` sentences, every row padded or cut to 128 tokens, so that one graph serves them all."""
    for at in range(0, len(sentences), size):
        batch = tokenizer(
            list(sentences[at : at + size]),
            padding="max_length",
            truncation=True,
            max_length=SENTENCE_TOKENS,
            return_tensors="pt",
        )
        yield dict(batch)


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens that ``mask`` keeps: hidden [b, s, d], mask [b, s] -> float32 [b, d]."""
    weight = mask.unsqueeze(-1).float()
    return (hidden.float() * weight).sum(1) / weight.sum(1).clamp_min(1.0)


def encoder(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[str]], Tensor]:
    """A function from sentences to mean-pooled embeddings, float32 [sentences, d]."""

    @torch.no_grad()
    def encode(sentences: Sequence[str]) -> Tensor:
        pooled = [
            mean_pool(model(**batch).last_hidden_state, batch["attention_mask"])
            for batch in sentence_batches(tokenizer, sentences)
        ]
        return torch.cat(pooled)

    return encode


def sick_spearman(encode: Callable[[Sequence[str]], Tensor], pairs: Sequence[SickPair]) -> float:
    """Spearman's rank correlation between the cosine of two embeddings and people's relatedness score."""
    first, second = encode([pair.first for pair in pairs]), encode([pair.second for pair in pairs])
    cosine = torch.cosine_similarity(first, second)
    return float(spearmanr(cosine.numpy(), [pair.score for pair in pairs]).statistic)


def token_windows(tokenizer: PreTrainedTokenizerBase, text: str, count: int, length: int = 512) -> Tensor:
    """The first ``count`` windows of ``length`` tokens, next to each other without overlap: int64 [count, length].

    Raises ``ValueError`` when the text is too short.
    """
    # A token is at least one byte but nearly always a few, so 8 characters a token leave room without reading it all.
    tokens = tokenizer(text[: 8 * count * length], return_tensors="pt").input_ids[0, : count * length]
    if tokens.numel() < count * length:
        raise ValueError(f"{tokens.numel()} tokens are too few for {count} windows of {length}")
    return tokens.view(count, length)


@torch.no_grad()
def perplexity(model: nn.Module, windows: Tensor) -> float:
    """exp of the mean cross-entropy of each token after a window's first; windows int64 [count, length]."""
    loss = 0.0
    for window in windows:
        logits = model(input_ids=window[None], use_cache=False).logits[0, :-1].float()
        loss += torch.nn.functional.cross_entropy(logits, window[1:]).item()
    return math.exp(loss / len(windows))
