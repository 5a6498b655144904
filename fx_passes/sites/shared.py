"""Parameters that more than one op reads: tied embeddings, blocks called twice."""

from torch.fx import Node

from torchqx.fx_passes.sites.provenance import Provenance


def shared_weights(provenance: Provenance) -> dict[Node, list[Node]]:
    """Parameter placeholder -> the ops that read it, in graph order, views and casts of it looked through."""
    shared = {}
    for weight in provenance.parameters:
        readers = sorted(_readers(weight, provenance))
        if len(readers) > 1:
            shared[weight] = readers
    return shared


def _readers(node: Node, provenance: Provenance) -> set[Node]:
    found: set[Node] = set()
    for user in node.users:
        if user.op == "output":
            continue
        if provenance.source(user) is not None:
            found |= _readers(user, provenance)
        else:
            found.add(user)
    return found
