"""What a watched storage tensor shows: another tensor, other content, content that moved along with a swap."""

import copy

import torch
from torch import nn

import torchqx
from tests.torchqx.tiny import quantized
from torchqx.storage import QuantizedWeight
from torchqx.watched import Watched


def watch() -> tuple[nn.Module, list[QuantizedWeight], Watched, list[int]]:
    model, gone = quantized(), []
    args = [model.up.weight, model.down.weight]
    assert all(isinstance(a, QuantizedWeight) for a in args)
    return model, args, Watched(args, [0, 1], lambda: gone.append(1)), gone


def test_another_tensor_with_the_same_content():
    _, args, watched, _ = watch()
    assert watched.unchanged(args)
    assert not watched.unchanged([args[0], copy.deepcopy(args[1])])
    assert not watched.unchanged([args[1], args[0]])
    assert not watched.unchanged([args[0], torch.ones(3)])
    assert watched.unchanged(args)


def test_a_component_that_was_set():
    _, args, watched, gone = watch()
    args[1].scale = args[1].scale * 2
    assert not watched.unchanged(args)
    assert gone == [1]


def test_contents_that_were_swapped():
    _, args, watched, _ = watch()
    other = copy.deepcopy(args[1])
    torch.utils.swap_tensors(args[1], other)
    assert not watched.unchanged(args)
    torch.utils.swap_tensors(args[1], other)
    assert watched.unchanged(args)


def test_another_weight_that_changes_does_not_matter():
    model, args, watched, _ = watch()
    model.first.weight.scale = model.first.weight.scale * 2
    assert watched.unchanged(args)
    args[0].scale = args[0].scale * 2
    assert not watched.unchanged(args)


def test_refresh():
    model, args, watched, _ = watch()
    torchqx.refresh(model)
    assert not watched.unchanged(args)
