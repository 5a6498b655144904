"""A Dynamo graph -> its sites."""

from collections.abc import Mapping

from torch import Tensor
from torch.fx import GraphModule, Node

from torchqx.fx_passes.sites.attention import find_attentions
from torchqx.fx_passes.sites.flow import Flow, leads_to
from torchqx.fx_passes.sites.linears import find_linear_ops, group_by_activation
from torchqx.fx_passes.sites.norms import find_norms
from torchqx.fx_passes.sites.padding import find_padding_mask
from torchqx.fx_passes.sites.provenance import Provenance
from torchqx.fx_passes.sites.residuals import find_residuals
from torchqx.fx_passes.sites.scans import find_scans, mark_readers
from torchqx.fx_passes.sites.shared import shared_weights
from torchqx.fx_passes.sites.site import GraphSites


def find_sites(gm: GraphModule, parameters: Mapping[Node, Tensor]) -> GraphSites:
    """All sites of a graph, which is left as it is. Their keys are relative to the frame that it was traced from.

    Args:
        parameters: placeholder -> Parameter; see :func:`parameter_nodes`.
    """
    provenance = Provenance(gm, parameters)
    attentions = find_attentions(gm)
    norms, odd_norms = find_norms(gm, provenance)
    inside_attention = {node for site in attentions for node in site.nodes}
    linears = find_linear_ops(gm, provenance, inside_attention)
    weighted = {op.node for op in linears.ops} | {site.node for site in attentions}
    weighted |= {refused.node for refused in linears.unsupported}
    residuals = find_residuals(gm, Flow(gm, weighted), provenance, norms, inside_attention)
    followed = leads_to(gm, weighted | {add for site in residuals for add in site.adds})
    for op in linears.ops:
        op.is_head = op.node not in followed
    scans, by_hand = find_scans(gm, provenance, linears.ops)
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
