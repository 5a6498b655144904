"""The settings that every affine integer recipe shares."""

import json
from abc import abstractmethod
from dataclasses import asdict, dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from torchao.core.config import AOBaseConfig

from torchqx.errors import ConfigError
from torchqx.observers.solvers import Solver
from torchqx.quantizers import AffineQuantizer, Granularity
from torchqx.rotations import Hadamard
from torchqx.scan_recipe import ScanQuantization

CHOICES: dict[str, tuple] = {
    "step": (None, "prepare", "convert"),
    "activation": ("auto", "static", "token", "group", "none"),
    "statistics": ("minmax", "mean_minmax", "percentile", "mse"),
    "calibration": ("parallel", "sequential"),
    "loss": ("auto", "linear"),
}
LEFT_OUT = "left out by the recipe's include and exclude patterns"


@dataclass
class AffineRecipe(AOBaseConfig):
    """Integer weights and activations for every linear site; subclasses say which solver finds the parameters.

    Attributes:
        step: "prepare" or "convert" when given to torchao's ``quantize_``; None for the backend and ``quantize``.
        weight_bits, activation_bits: 2 to 8; below 8 the int8 path runs with the narrower range.
        weight_symmetric, activation_symmetric: a range around zero instead of the tight one.
        weight_granularity: "tensor", "channel", or "group" (of ``weight_group_size``).
        activation: "static" per tensor; "token": per token at run time; "group": per ``activation_group_size``
            elements of a token at run time; "none": float, for weight-only quantization; "auto": each site the
            cheapest that its errors allow.
        error_budget: with "auto", the relative output error per token up to which a site is static, each token
            measured with the range that the others give; above it, it steps to per-token quantizers where those are
            better. So few calibration tokens lead to per-token quantizers.
        error_limit: with "auto", the error above which a site stays float whatever the quantizer. Both hold at 8 bits
            and double with each bit fewer, as the quantizer's step does.
        statistics: of the sampled rows, what gives a static range.
        calibration: "parallel": every site sees the float model's activations; "sequential": those of the model whose
            earlier sites are quantized already.
        calibration_steps: calls that calibrate under ``torch.compile``. A batch that comes again counts, but shows
            nothing new.
        sample_rows: rows kept per site to measure errors on.
        loss: "auto" compares attention results and gated products where a site feeds one; "linear" its own outputs.
        include, exclude: patterns of site keys, as in ``fnmatch``.
        quantize_head: also the last projection (classifier, vocabulary).

    Raises:
        ConfigError: for a value outside its range.
    """

    step: str | None = None
    weight_bits: int = 8
    activation_bits: int = 8
    weight_symmetric: bool = True
    activation_symmetric: bool = False
    weight_granularity: Granularity = "channel"
    weight_group_size: int | None = None
    activation: Literal["auto", "static", "token", "group", "none"] = "auto"
    activation_group_size: int | None = None
    error_budget: float = 0.015
    error_limit: float = 0.1
    statistics: str = "minmax"
    calibration: str = "parallel"
    calibration_steps: int = 16
    sample_rows: int = 512
    loss: str = "auto"
    include: list[str] = field(default_factory=lambda: ["*"])
    exclude: list[str] = field(default_factory=list)
    quantize_head: bool = False
    version: int = 1

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"unknown value {getattr(self, name)!r}", where=name,
                                  remedy=f"choose one of {', '.join(map(repr, allowed))}.")
        for name in ("calibration_steps", "sample_rows"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ConfigError(f"{getattr(self, name)!r} is not a positive integer", where=name,
                                  remedy="give 1 or more.")
        if not 0 < self.error_budget <= self.error_limit:
            raise ConfigError(f"budget {self.error_budget}, limit {self.error_limit}", where="error_budget",
                              remedy="give a positive budget, and a limit that is not below it.")
        if self.weight_granularity in ("token", "none"):
            raise ConfigError(f"weights are not quantized per {self.weight_granularity}", where="weight_granularity",
                              remedy="choose 'channel'.")
        for name in ("include", "exclude"):
            if isinstance(getattr(self, name), str):
                raise ConfigError("expects a list of patterns", where=name, remedy="put the pattern into a list.")
            setattr(self, name, list(getattr(self, name)))
        self.weight_quantizer()
        self.activation_ladder()

    fold = "none"  # which rotations may move into neighbouring weights; a field of the recipes that rotate
    rotate_keys = False  # whether queries and keys are rotated; likewise

    @abstractmethod
    def solver(self) -> Solver:
        """What turns a site's statistics and weights into parameters."""

    def rotation(self, key: str, columns: int, after_scan: bool = False) -> tuple[Hadamard | None, str]:
        """The rotation in front of a site's shift and scale, for rows of ``columns`` elements; or None, and why if
        this recipe rotates others.

        Args:
            after_scan: whether the site reads a state-space scan's result.
        """
        return None, ""

    def for_linears(self, state_space: bool) -> "AffineRecipe":
        """The recipe of a model's weighted matmuls: of those in the layers with a scan, or of the others."""
        return self

    def scan_quantization(self) -> ScanQuantization | None:
        """How scans and causal convolutions are quantized; None where they stay in float."""
        return None

    def weight_quantizer(self) -> AffineQuantizer:
        return AffineQuantizer(self.weight_bits, self.weight_symmetric, self.weight_granularity,
                               self.weight_group_size, signed=True)

    def activation_ladder(self) -> list[AffineQuantizer]:
        """The activation quantizers to try, cheapest first. Only "auto" has more than one."""
        def make(granularity: Granularity, dynamic: bool, size: int | None = None) -> AffineQuantizer:
            return AffineQuantizer(self.activation_bits, self.activation_symmetric, granularity, size, dynamic)

        ladder = {"static": [make("tensor", False)], "token": [make("token", True)], "none": [make("none", True)]}
        ladder["auto"] = ladder["static"] + ladder["token"]
        if self.activation == "group":
            return [make("group", True, self.activation_group_size)]
        if self.activation_group_size is not None:
            raise ConfigError("goes with activation 'group'", where="activation_group_size", remedy="give both.")
        return ladder[self.activation]

    @property
    def tolerance(self) -> float:
        """What the error budget and limit are multiplied by at this recipe's bits."""
        return 2.0 ** (8 - min(self.weight_bits, self.activation_bits))

    def selects(self, key: str) -> bool:
        """Whether the patterns choose the site with this key."""
        return any(fnmatchcase(key, p) for p in self.include) and not any(fnmatchcase(key, p) for p in self.exclude)

    def with_steps(self, steps: Any) -> "AffineRecipe":
        """This recipe with another ``calibration_steps``; raises ConfigError if that is no positive integer."""
        return replace(self, calibration_steps=steps)

    def fingerprint(self) -> str:
        """Equal for recipes that solve alike, whatever their step."""
        return json.dumps({"recipe": type(self).__name__, **asdict(self), "step": None}, sort_keys=True)


def make_recipe(cls: type[AffineRecipe], values: dict[str, Any]) -> AffineRecipe:
    """``cls(**values)`` with a ConfigError naming the fields that it does not have."""
    unknown = sorted(set(values) - {f.name for f in fields(cls)})
    if unknown:
        raise ConfigError(f"{cls.__name__} has no field {', '.join(unknown)}", where=unknown[0],
                          remedy=f"its fields are {', '.join(f.name for f in fields(cls))}.")
    return cls(**values)
