"""Recipes for state-space layers, composed with another recipe for the other layers of a hybrid."""

from dataclasses import dataclass

from torchqx.errors import ConfigError
from torchqx.recipe import AffineRecipe


@dataclass
class StateSpaceRecipe(AffineRecipe):
    """What the recipes for state-space models share.

    Attributes:
        linears: the recipe of the weighted matmuls outside the layers with a scan (a hybrid's attention and
            feed-forward parts, the head): its solver, quantizers, patterns and limits; how to calibrate is this
            recipe's. None: this recipe serves them too.

    Raises:
        ConfigError: ``linears`` is no recipe, or acts on more than one matmul at a time.
    """

    linears: AffineRecipe | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.linears is None:
            return
        if not isinstance(self.linears, AffineRecipe):
            raise ConfigError(f"{type(self.linears).__name__} is no recipe", where="linears",
                              remedy="give an instance such as torchqx.OutlierSuppressionPlusConfig().")
        if self.linears.fold != "none" or self.linears.rotate_keys:
            raise ConfigError("rotations of a whole model do not go along with another recipe", where="linears",
                              remedy="give it fold='none' and rotate_keys=False.")

    def for_linears(self, state_space: bool) -> AffineRecipe:
        return self if state_space or self.linears is None else self.linears

    def fingerprint(self) -> str:
        return super().fingerprint() + ("" if self.linears is None else self.linears.fingerprint())
