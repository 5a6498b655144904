"""Prefill and decode through generate(): the decode graph runs on the plan that prefill calibrated."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationMixin

import torchqx
from tests.architectures import ARCHITECTURES
from tests.torchqx.small import EAGER, LIVE, RECIPE, calls, error

NEW = 5


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def generate(model: GenerationMixin, inputs: dict[str, Tensor], cache: str | None) -> Any:
    return model.generate(**inputs, max_new_tokens=NEW, do_sample=False, output_logits=True, cache_implementation=cache,
                          return_dict_in_generate=True, pad_token_id=0, eos_token_id=None)


@pytest.mark.parametrize(("name", "cache"), [
    ("llama", None), ("llama", "static"), ("gpt2", "static"), pytest.param("opt", None, marks=pytest.mark.slow)])
def test_generate_after_live_calibration(name: str, cache: str | None):
    architecture = ARCHITECTURES[name]
    batches = [architecture.inputs(rows, length) for rows, length in ((2, 9), (2, 12))]
    model, reference = architecture.build(), torchqx.quantize(architecture.build(), RECIPE, batches)
    model.compile(backend="torchqx", options=LIVE)
    for inputs in batches:
        model(**inputs)
    before = calls(model)
    assert set(before) <= {0, 2}
    inputs = architecture.inputs(3, 7)
    found, expected = generate(model, inputs, cache), generate(reference, inputs, cache)
    assert calls(model) == before
    assert torch.equal(found.sequences, expected.sequences)
    assert all(error(y, e) < 0.05 for y, e in zip(found.logits, expected.logits, strict=True))
    known = {s.key for s in torchqx.explain(reference).sites if s.kind == "linear"}
    assert {s.key for s in torchqx.explain(model).sites if s.kind == "linear"} == known


def test_generate_on_a_converted_model():
    architecture = ARCHITECTURES["opt"]
    inputs = architecture.inputs(2, 9)
    model = torchqx.quantize(architecture.build(), RECIPE, [inputs])
    expected = generate(model, inputs, None)
    model.compile(backend="torchqx", options=EAGER)
    found = generate(model, inputs, None)
    assert torch.equal(found.sequences, expected.sequences)
    assert all(error(y, e) < 0.05 for y, e in zip(found.logits, expected.logits, strict=True))


def test_generate_itself_may_calibrate():
    """Prefill and decode count together; sites that only decode sees do not exist here."""
    architecture = ARCHITECTURES["gpt2"]
    inputs = architecture.inputs(2, 9)
    model, expected = architecture.build(), generate(architecture.build(), inputs, None)
    model.compile(backend="torchqx", options=LIVE)
    found = generate(model, inputs, None)
    errors = [error(y, e) for y, e in zip(found.logits, expected.logits, strict=True)]
    assert max(errors[:2]) < 1e-6 < errors[2]
    assert set(calls(model)) == {0, 2}
