"""Queries and keys rotated alike: results stay, and what a cache holds are rotated keys."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import StaticCache

from tests.architectures import ARCHITECTURES
from tests.capture import capture_one
from tests.fx_passes.rotations.rotate import in_double
from torchqx.errors import UnsupportedError
from torchqx.fx_passes.canonicalize import canonicalize
from torchqx.fx_passes.prove import TOLERANCE
from torchqx.fx_passes.rotations.fold import rotations
from torchqx.fx_passes.rotations.keys import rotate_keys
from torchqx.fx_passes.sites.attention import find_attentions
from torchqx.rotations import choose


class Graphs:
    """A model's float64 graph: its results, and those with rotated queries and keys."""

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        self.gm, inputs = capture_one(model, *args, **kwargs)
        in_double(self.gm)
        canonicalize(self.gm)
        self.inputs = inputs
        with torch.no_grad():
            self.plain = self.gm(*_copies(inputs))
        self.words = rotate_keys(self.gm, find_attentions(self.gm))

    def rotated(self, given: dict[int, Tensor] | None = None) -> Any:
        """The rotated graph's results; ``given``: position of an input -> its rotated value."""
        inputs = _copies(self.inputs)
        for i, value in (given or {}).items():
            inputs[i] = value
        with torch.no_grad():
            return self.gm(*inputs)

    def cached(self) -> list[int]:
        """Positions of the inputs that hold cached keys."""
        return [i for i, n in enumerate(self.gm.graph.nodes) if n.op == "placeholder" and n.name.endswith("_keys")]


def _copies(inputs: list[Any]) -> list[Any]:
    return [i.clone() if isinstance(i, Tensor) and not isinstance(i, nn.Parameter) else i for i in inputs]


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def model_of(name: str, head_dim: int) -> tuple[nn.Module, dict[str, Any]]:
    architecture = ARCHITECTURES[name]
    build = architecture.build
    model = build.func(*build.args, **build.keywords | {"head_dim": head_dim, "num_hidden_layers": 1})
    return model.double(), architecture.inputs(2, 8)


@pytest.mark.parametrize(("name", "head_dim"), [("llama", 16), ("llama", 24), ("qwen3", 20)])
def test_prefill_and_a_decoding_step(name: str, head_dim: int) -> None:
    """The step's cache is the prefill's: plain for the plain graph, rotated for the rotated one."""
    model, inputs = model_of(name, head_dim)
    with torch.no_grad():
        cache = model(**inputs).past_key_values
    prefill = Graphs(model, **inputs, use_cache=True)
    assert list(prefill.words.values()) == [(f"queries and keys: {choose(head_dim).words(head_dim)}", "")]
    results, expected = prefill.rotated(), prefill.plain
    assert difference(results[-1], expected[-1]) < TOLERANCE
    rotated_keys = results[1]
    assert difference(rotated_keys, choose(head_dim).apply(expected[1])) < TOLERANCE
    cache.layers[0].values, cache.layers[0].keys = expected[:2]
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1, dtype=torch.long)], 1)
    step = Graphs(model, input_ids=inputs["input_ids"][:, :1], attention_mask=mask, past_key_values=cache)
    after = step.rotated(dict.fromkeys(step.cached(), rotated_keys))
    assert difference(after[-1], step.plain[-1]) < TOLERANCE
    assert difference(after[1], choose(head_dim).apply(step.plain[1])) < TOLERANCE
    # One per query and per new key: what is in the cache does not turn again, nor do keys once per query of a group.
    found = [tuple(n.meta["example_value"].shape[1:3]) for n in rotations(step.gm.graph)]
    assert sorted(found) == [(2, 1), (4, 1)]


def test_a_cache_that_keys_are_written_into() -> None:
    model, inputs = model_of("llama", 16)
    cache = StaticCache(config=model.config, max_cache_len=12)
    with torch.no_grad():
        model(**inputs, past_key_values=cache)
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1, dtype=torch.long)], 1)
    step = Graphs(model, input_ids=inputs["input_ids"][:, :1], attention_mask=mask, past_key_values=cache)
    cached = {i: choose(16).apply(step.inputs[i]) for i in step.cached()}
    assert len(cached) == 1
    assert difference(step.rotated(cached)[-1], step.plain[-1]) < TOLERANCE


def spelled_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax((q * 0.25) @ k.transpose(-1, -2), -1) @ v


def test_spelled_out_and_read_plain_elsewhere() -> None:
    def code(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        k = k * 2.0
        return spelled_out(q.tanh(), k, v), k.sum(), torch.cat([k, v], -1)

    graphs = Graphs(code, *torch.randn(3, 2, 4, 5, 16, dtype=torch.double))
    for mine, plain in zip(graphs.rotated(), graphs.plain, strict=True):
        assert difference(mine, plain) < TOLERANCE
    assert len(rotations(graphs.gm.graph)) == 2


def test_two_attentions_share_keys() -> None:
    def code(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k = k.sin()
        return F.scaled_dot_product_attention(q, k, v) + F.scaled_dot_product_attention(q.cos(), k, v)

    graphs = Graphs(code, *torch.randn(3, 2, 4, 5, 16, dtype=torch.double))
    assert difference(graphs.rotated()[0], graphs.plain[0]) < TOLERANCE
    assert len(rotations(graphs.gm.graph)) == 3


def test_what_stays_says_why() -> None:
    graphs = Graphs(lambda q, k, v: spelled_out(q, k.sin(), v), *torch.randn(3, 2, 4, 5, 8, dtype=torch.double))
    assert list(graphs.words.values()) == [("", "keys not rotated: heads of 8 have no Hadamard block of 16 or more")]
    assert not rotations(graphs.gm.graph)


def test_keys_that_nobody_computes_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="an input of the graph"):
        Graphs(F.scaled_dot_product_attention, *torch.randn(3, 2, 4, 5, 16, dtype=torch.double))


def test_joined_keys_that_are_read_elsewhere_are_refused() -> None:
    def code(q: Tensor, k: Tensor, v: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
        keys = torch.cat([old, k.sin()], 2)
        return F.scaled_dot_product_attention(q, keys, torch.cat([v, v], 2)), keys.exp()

    with pytest.raises(UnsupportedError, match="also read by exp"):
        Graphs(code, *torch.randn(4, 2, 4, 5, 16, dtype=torch.double))


def test_queries_written_in_place_are_refused() -> None:
    def code(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = q.sin()
        q.mul_(2)
        return F.scaled_dot_product_attention(q, k.sin(), v)

    with pytest.raises(UnsupportedError, match="in place"):
        Graphs(code, *torch.randn(3, 2, 4, 5, 16, dtype=torch.double))
