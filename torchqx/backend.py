"""The compiler backend: ``torch.compile(model, backend="torchqx", options={...})``."""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.nn import Parameter

from torchqx.component_guards import drop_component_guards
from torchqx.errors import ConfigError, TorchqxError, TorchqxWarning, UnsupportedError
from torchqx.executable import TracedInputs
from torchqx.fx_passes.canonicalize import canonicalize
from torchqx.fx_passes.expand import expand_opaque
from torchqx.fx_passes.rotations.keys import rotate_keys
from torchqx.fx_passes.sites import GraphSites, find_sites, parameter_nodes
from torchqx.lowering_choice import POLICIES, Policy
from torchqx.outlier_suppression_plus import OutlierSuppressionPlusConfig
from torchqx.plan import SiteRecord
from torchqx.recipe import LEFT_OUT, AffineRecipe
from torchqx.runner import GraphRunner
from torchqx.session import SESSIONS, Session
from torchqx.state_space_hosts import takes_operators

LOWERINGS = ("inductor", "eager")
DEVICES = ("cpu", "cuda")
NOT_QUANTIZED = {
    "attention": "this recipe leaves attention in float",
    "norm": "computed in float; fused with the quantizers that read it",
    "residual": "kept in float",
    "scan": "computed in float by one operator",
    "conv": "computed in float by one operator",
}


@takes_operators
def torchqx_backend(gm: GraphModule, example_inputs: Sequence[Any], *, options: dict[str, Any] | None = None,
                    mode: str | None = None, **_: Any) -> Callable[..., Any]:
    """Quantize and compile a graph from Dynamo.

    A model whose weights are quantized runs on its integers at once. A float model calibrates on its first calls,
    whose results are the float model's to rounding, then runs quantized; its parameters stay as they are.

    Args:
        options: ``recipe`` (default OutlierSuppressionPlusConfig()), ``calibration_steps`` (default the recipe's),
            ``lowering`` ("inductor", or "eager" to run the rewritten graph node by node), ``cost_model`` ("auto" to
            leave matmuls in float where integers do not pay on this machine; "int8" or "float" for all); any other key
            goes to Inductor.
        mode: as in ``torch.compile``: Inductor's presets.

    The first call raises:
        ConfigError: an option has the wrong type or value.
        UnsupportedError: a device that torchqx does not lower to.
    """
    try:
        session, lowering, policy, inductor_options = read_options(options or {}, mode)
        return build_runner(gm, example_inputs, session, lowering, policy, inductor_options)
    except TorchqxError as error:
        return refuse(error)


def read_options(options: dict[str, Any], mode: str | None) -> tuple[Session, str, Policy, dict[str, Any]]:
    """The recipe's session, the lowering, who decides on integers, and Inductor's own options; raises ConfigError."""
    settings = dict(options)
    recipe = settings.pop("recipe", None) or OutlierSuppressionPlusConfig()
    if not isinstance(recipe, AffineRecipe):
        raise ConfigError(f"{type(recipe).__name__} is no recipe", where="options['recipe']",
                          remedy="give an instance such as torchqx.OutlierSuppressionPlusConfig().")
    steps = settings.pop("calibration_steps", recipe.calibration_steps)
    if steps != recipe.calibration_steps:
        recipe = recipe.with_steps(steps)
    lowering = settings.pop("lowering", "inductor")
    if lowering not in LOWERINGS:
        raise ConfigError(f"unknown lowering {lowering!r}", where="options['lowering']",
                          remedy=f"choose one of {', '.join(LOWERINGS)}.")
    policy = settings.pop("cost_model", "auto")
    if policy not in POLICIES:
        raise ConfigError(f"unknown value {policy!r}", where="options['cost_model']",
                          remedy=f"choose one of {', '.join(POLICIES)}.")
    if lowering == "eager" and policy == "auto":
        policy = "int8"  # node by node nothing is fast, and the whole rewrite is to be seen
    if mode not in (None, "default"):
        settings = torch._inductor.list_mode_options(mode) | settings
    return SESSIONS.get(recipe), lowering, policy, settings


def refuse(error: TorchqxError) -> Callable[..., Any]:
    """A callable that raises ``error``: Dynamo wraps what a backend raises itself, but not what its result raises."""

    def call(*args: Any) -> Any:
        raise error

    return call


def build_runner(gm: GraphModule, example_inputs: Sequence[Any], session: Session, lowering: str = "inductor",
                 policy: Policy = "int8", inductor_options: dict[str, Any] | None = None) -> GraphRunner:
    """The callable for one graph."""
    placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    parameters = parameter_nodes(gm, example_inputs)
    for node, value in parameters.items():
        if value.device.type not in DEVICES:
            raise UnsupportedError(f"device {value.device}", where=node.name,
                                   remedy=f"torchqx lowers to {' and '.join(DEVICES)}.")
    attributes = [n.target for n in gm.graph.nodes if n.op == "get_attr"]
    constants = [name for name in attributes if isinstance(getattr(gm, name), Parameter)]
    if constants:
        raise UnsupportedError("Inductor's freezing made parameters constants of the graph", where=constants[0],
                               remedy="set torch._inductor.config.freezing = False: torchqx packs weights itself.")
    drop_component_guards(placeholders)
    names = {n: parameter_name(n) for n in parameters}
    traced = TracedInputs(placeholders, example_inputs)
    traced.specialize_floats()
    expand_opaque(gm)
    canonicalize(gm)
    sites = find_sites(gm, parameters)
    turned = rotate_keys(gm, sites.attentions) if session.recipe.rotate_keys else {}
    broken = getattr(gm, "compile_subgraph_reason", None)
    if broken is not None and broken.graph_break:
        for op in (op for site in sites.linears for op in site.ops):
            op.is_head = False  # what reads it is in another graph
    if parameters and not sites.linears:
        warnings.warn("a graph with parameters has no weighted matmul that torchqx knows; it is compiled as it is",
                      TorchqxWarning, stacklevel=2)
    records = other_records(sites, turned, session.recipe)
    return GraphRunner(gm, traced, sites, names, records, session, lowering, policy, inductor_options or {})


def parameter_name(placeholder: Node) -> str:
    """The parameter's qualified name in the traced module: "encoder.layer.0.output.dense.weight"."""
    argument = placeholder.meta.get("grapharg")
    source = argument.source.name if argument is not None else placeholder.name
    source = source() if callable(source) else source
    parts = re.findall(r"_(?:modules|parameters|buffers)\['([^']*)'\]", source)
    return ".".join(parts) if parts else placeholder.name


def other_records(sites: GraphSites, turned: Mapping[str, tuple[str, str]], recipe: AffineRecipe) -> list[SiteRecord]:
    """The report's lines for everything in a graph that is no linear site.

    Args:
        turned: what :func:`rotate_keys` says of attentions.
    """
    found = [*sites.norms, *sites.attentions, *sites.residuals, *sites.scans]
    left_out = {s.key for s in sites.scans if recipe.scan_quantization() is not None and not recipe.selects(s.key)}
    records = [SiteRecord(s.key, s.kind, "skipped", LEFT_OUT if s.key in left_out else NOT_QUANTIZED[s.kind])
               for s in found]
    for record in records:
        transform, reason = turned.get(record.key, ("", ""))
        if transform:
            record.transforms, record.placement = [transform], "online"
        record.reason += f"; {reason}" if reason else ""
    return records + [SiteRecord(u.key, u.kind, "skipped", u.reason) for u in sites.unsupported]
