"""The only code that knows graph patterns: a Dynamo graph -> its sites."""

from torchqx.fx_passes.sites.find import find_sites
from torchqx.fx_passes.sites.provenance import parameter_nodes
from torchqx.fx_passes.sites.site import (
    AttentionSite,
    Form,
    GraphSites,
    LinearOp,
    LinearSite,
    NormSite,
    ResidualSite,
    ScanSite,
    Unsupported,
)

__all__ = [
    "AttentionSite",
    "Form",
    "GraphSites",
    "LinearOp",
    "LinearSite",
    "NormSite",
    "ResidualSite",
    "ScanSite",
    "Unsupported",
    "find_sites",
    "parameter_nodes",
]
