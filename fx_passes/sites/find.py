"""A Dynamo graph -> its sites."""

from collections.abc import Mapping

from torch import Tensor
from torch.fx import GraphModule, Node

from torchqx.fx_passes.sites.attention import find_attentions
from torchqx.fx_passes.sites.flow import Flow, leads_to
from torchqx.fx_passes.sites.keys import Paths
from torchqx.fx_passes.sites.linears import find_linear_ops, group_by_activation
from torchqx.fx_passes.sites.norms import find_norms
from torchqx.fx_passes.sites.padding import find_padding_mask
from torchqx.fx_passes.sites.provenance import Provenance, placeholder_parameters
from torchqx.fx_passes.sites.residuals import find_residuals
from torchqx.fx_passes.sites.scans import find_scans, mark_readers
from torchqx.fx_passes.sites.shared import shared_weights
from torchqx.fx_passes.sites.site import GraphSites


def find_sites(
    gm: GraphModule, parameters: Mapping[Node, Tensor] | None = None, names: Mapping[Node, str] | None = None
) -> GraphSites:
    """All sites of a graph, which is left as it is.

    Args:
        parameters: placeholder -> Parameter (see :func:`parameter_nodes`); without it, the placeholders that Dynamo
            marked as parameters.
        names: placeholder -> the parameter's name in the whole model. With it, keys are paths in the model even where
            the graph was traced from a submodule's frame; without it they are relative to that frame.
    """
    paths = Paths(names)
    provenance = Provenance(gm, placeholder_parameters(gm) if parameters is None else parameters)
    attentions = find_attentions(gm, paths)
    norms, odd_norms = find_norms(gm, provenance, paths)
    inside_attention = {node for site in attentions for node in site.nodes}
    linears = find_linear_ops(gm, provenance, paths, inside_attention)
    weighted = {op.node for op in linears.ops} | {site.node for site in attentions}
    weighted |= {refused.node for refused in linears.unsupported}
    residuals = find_residuals(gm, Flow(gm, weighted), provenance, paths, norms, inside_attention)
    followed = leads_to(gm, weighted | {add for site in residuals for add in site.adds})
    for op in linears.ops:
        op.is_head = op.node not in followed
    scans, by_hand = find_scans(gm, provenance, paths, linears.ops)
    sites = group_by_activation(linears.ops)
    mark_readers(gm, scans, sites)
    padding_mask, inverted = find_padding_mask(attentions, scans, provenance)
    return GraphSites(
        linears=sites,
        norms=norms,
        attentions=attentions,
        residuals=residuals,
        scans=scans,
        unsupported=[*linears.unsupported, *odd_norms, *by_hand],
        shared_weights=shared_weights(provenance),
        padding_mask=padding_mask,
        padding_mask_marks_padding=inverted,
    )
