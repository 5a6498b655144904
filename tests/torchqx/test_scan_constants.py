"""Parameters of a scan as int8 codes say them."""

import torch

from torchqx.scan_constants import coded_constant


def test_at_most_255_values_and_half_a_step_of_error():
    value = torch.randn(1000)
    coded = coded_constant("D", value)
    assert len(coded.unique()) <= 255
    assert (coded - value).abs().max() <= value.abs().max() / 127 / 2 * 1.0001
    assert torch.equal(coded_constant("D", torch.zeros(3)), torch.zeros(3))


def test_decay_rates_through_their_logarithm():
    a_log = torch.rand(10, 4) * 3
    coded = coded_constant("A", -a_log.exp())
    assert ((-coded).log() - a_log).abs().max() <= a_log.max() / 127 / 2 * 1.0001


def test_what_expand_repeats_stays_repeated():
    value = (-torch.rand(4, 1, 1)).expand(4, 3, 5)
    coded = coded_constant("A", value)
    assert coded.shape == (4, 3, 5)
    assert coded.stride()[1:] == (0, 0)
    torch.testing.assert_close(coded, coded_constant("A", value.contiguous()))
