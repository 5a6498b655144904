"""Recipes as data, and what they say of sites."""

from dataclasses import asdict

import pytest
from torchao.core.config import config_from_dict, config_to_dict

from torchqx import HadamardConfig, MinMaxConfig, OutlierSuppressionPlusConfig, SmoothQuantScalingConfig
from torchqx.errors import ConfigError
from torchqx.observers.solvers import MinMaxSolver, OutlierSuppressionPlusSolver, SmoothQuantSolver
from torchqx.recipe import AffineRecipe, make_recipe
from torchqx.rotations import Hadamard

RECIPES = [OutlierSuppressionPlusConfig(shift=False, grid_steps=None, exclude=["a.*"]),
           SmoothQuantScalingConfig(alpha=None),
           MinMaxConfig(weight_granularity="group", weight_group_size=32, activation="token"),
           HadamardConfig(seed=None, where=["*.mlp*"], shift_scale="osplus", clip_ratio=0.9, fold="none")]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: type(r).__name__)
def test_as_data(recipe: AffineRecipe) -> None:
    assert make_recipe(type(recipe), asdict(recipe)) == recipe
    assert config_from_dict(config_to_dict(recipe)) == recipe


def test_solvers() -> None:
    kinds = [type(r.solver()) for r in RECIPES]
    assert kinds == [OutlierSuppressionPlusSolver, SmoothQuantSolver, MinMaxSolver, OutlierSuppressionPlusSolver]
    with pytest.raises(TypeError, match="abstract method solver"):
        AffineRecipe()


@pytest.mark.parametrize(("activation", "kinds"), [
    ("auto", [("tensor", False), ("token", True)]), ("static", [("tensor", False)]), ("token", [("token", True)]),
])
def test_ladder(activation: str, kinds: list) -> None:
    ladder = MinMaxConfig(activation=activation, activation_bits=6).activation_ladder()
    assert [(q.granularity, q.dynamic) for q in ladder] == kinds
    assert all(q.bits == 6 and not q.signed for q in ladder)


def test_group_activation() -> None:
    (q,) = MinMaxConfig(activation="group", activation_group_size=16).activation_ladder()
    assert (q.granularity, q.group_size, q.dynamic) == ("group", 16, True)


def test_patterns() -> None:
    recipe = MinMaxConfig(include=["*.mlp*", "head:*"], exclude=["*.0.*"])
    chosen = ["layers.1.mlp:linear:0", "layers.1.mlp.down:linear:0", "head:linear:0"]
    assert all(map(recipe.selects, chosen))
    assert not any(map(recipe.selects, ["layers.0.mlp:linear:0", "layers.1.attention:linear:0", "the.head:linear:0"]))


def test_only_recipes_that_rotate_have_rotations() -> None:
    assert MinMaxConfig().rotation("site:linear:0", 64) == (None, "")
    assert HadamardConfig().rotation("site:linear:0", 64) == (Hadamard(64, 0), "")


def test_fingerprint() -> None:
    """Equal for what solves alike."""
    assert MinMaxConfig(step="prepare").fingerprint() == MinMaxConfig(step="convert").fingerprint()
    assert MinMaxConfig().fingerprint() != MinMaxConfig(weight_bits=6).fingerprint()
    assert MinMaxConfig().fingerprint() != SmoothQuantScalingConfig().fingerprint()


def test_steps() -> None:
    recipe = MinMaxConfig(weight_bits=6).with_steps(3)
    assert (recipe.calibration_steps, recipe.weight_bits) == (3, 6)
    with pytest.raises(ConfigError):
        recipe.with_steps(0)


def test_lists_are_not_shared() -> None:
    patterns = ["*"]
    recipe = MinMaxConfig(include=patterns)
    patterns.append("x")
    assert recipe.include == ["*"]
    assert MinMaxConfig(include=("a", "b")).include == ["a", "b"]
