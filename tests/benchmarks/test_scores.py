import math

import pytest
import torch
from torch import nn

from benchmarks.data import SickPair, data_file, sick_pairs, wikitext_test
from benchmarks.scores import encoder, mean_pool, perplexity, sick_spearman, token_windows
from tests.real_models import need_data


class Uniform(nn.Module):
    """A language model that finds each of ``vocabulary`` tokens equally likely."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    def forward(self, input_ids, use_cache):
        logits = torch.zeros(*input_ids.shape, self.vocabulary)
        return type("Output", (), {"logits": logits})()


def test_mean_pool_ignores_what_the_mask_leaves_out():
    hidden = torch.randn(3, 7, 5)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [0] * 7])
    pooled = mean_pool(hidden, mask)
    torch.testing.assert_close(pooled[0], hidden[0].mean(0))
    torch.testing.assert_close(pooled[1], hidden[1, :4].mean(0))
    assert pooled[2].abs().max() == 0


def test_spearman_is_one_when_cosines_rank_as_people_do():
    vectors = {"east": [1.0, 0.0], "north-east": [1.0, 1.0], "north": [0.0, 1.0], "west": [-1.0, 0.0]}
    pairs = [SickPair("east", "north-east", 4.5), SickPair("east", "north", 3.0), SickPair("east", "west", 1.0)]

    def encode(sentences):
        return torch.tensor([vectors[sentence] for sentence in sentences])

    assert sick_spearman(encode, pairs) == pytest.approx(1.0)
    assert sick_spearman(encode, [pair._replace(score=-pair.score) for pair in pairs]) == pytest.approx(-1.0)


def test_perplexity_of_uniform_guesses_is_the_vocabulary():
    windows = torch.randint(0, 63, (3, 10))
    assert perplexity(Uniform(63), windows) == pytest.approx(63.0)


def test_perplexity_predicts_the_next_token_not_the_same_one():
    class Copies(nn.Module):
        def forward(self, input_ids, use_cache):
            logits = 20.0 * nn.functional.one_hot((input_ids + 1) % 63, 63).float()
            return type("Output", (), {"logits": logits})()

    counting = torch.arange(63).repeat(2, 1)
    assert perplexity(Copies(), counting) == pytest.approx(1.0, abs=1e-3)
    assert perplexity(Copies(), torch.zeros(2, 63, dtype=torch.long)) > math.exp(19)


def test_minilm_reproduces_its_published_similarity(minilm):
    need_data("sick.tsv")
    assert sick_spearman(encoder(*minilm), sick_pairs(60)) == pytest.approx(0.7050, abs=2e-3)


def test_windows_stand_side_by_side(minilm):
    tokenizer = minilm[1]
    text = "one two three four five six " * 40
    windows = token_windows(tokenizer, text, 4, 11)
    assert windows.shape == (4, 11)
    torch.testing.assert_close(windows.flatten(), tokenizer(text, return_tensors="pt").input_ids[0, :44])
    with pytest.raises(ValueError, match="too few"):
        token_windows(tokenizer, "one two", 4, 11)


@pytest.mark.slow  # MiniLM is the real model that every run of the tests scores
def test_smollm2_reproduces_its_perplexity(smollm2):
    need_data("wikitext2/test.raw")
    model, tokenizer = smollm2
    assert perplexity(model, token_windows(tokenizer, wikitext_test(), 1)) == pytest.approx(20.312, rel=2e-3)


def test_absent_data_says_which_file_and_where(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHQX_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"sick\.tsv is missing: set TORCHQX_DATA"):
        data_file("sick.tsv")
