"""A hybrid's state-space layers follow one recipe, its other layers another."""

from collections import Counter
from typing import Any

import pytest
import torch
from torchao.core.config import config_from_dict, config_to_dict

import torchqx
from tests.state_space_models import MODELS, prompt
from torchqx.errors import ConfigError

OTHER = torchqx.OutlierSuppressionPlusConfig(grid_steps=2, loss="linear", exclude=["*feed_forward:*"],
                                             quantize_head=True)


@pytest.fixture(autouse=True)
def no_gradients():
    torch._dynamo.reset()
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", ["jamba", "falcon_h1"])
def test_each_layer_follows_its_recipe(name: str):
    model = torchqx.quantize(MODELS[name](), torchqx.QuambaConfig(linears=OTHER), [prompt(2, 16)])
    solvers: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    report = torchqx.explain(model)
    for site in report.sites:
        if site.kind == "linear" and site.status == "quantized":
            solvers[".mamba" in site.key].update([site.solver])
    assert set(solvers[True]) == {"MinMaxSolver"}
    assert set(solvers[False]) == {type(OTHER.solver()).__name__}
    assert report["lm_head:linear:0"].status == "quantized"
    assert "patterns" in next(s.reason for s in report.sites if "feed_forward:" in s.key)


def test_both_recipes_tell_sessions_apart():
    recipes = [torchqx.QuambaConfig(linears=linears) for linears in (
        None, OTHER, torchqx.MinMaxConfig(), torchqx.MinMaxConfig(quantize_head=True))]
    assert len({recipe.fingerprint() for recipe in recipes}) == len(recipes)


def test_as_json():
    recipe = torchqx.QuambaConfig(linears=OTHER)
    assert config_from_dict(config_to_dict(recipe)) == recipe


@pytest.mark.parametrize("linears", ["minmax", torchqx.HadamardConfig()])
def test_what_does_not_compose(linears: Any):
    with pytest.raises(ConfigError, match="linears"):
        torchqx.MambaPTQConfig(linears=linears)
