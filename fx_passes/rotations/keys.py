"""Queries and keys behind their position embeddings, rotated by one matrix per head: a cache holds rotated keys.

    before   k = cat(cache, k)                   softmax(q kᵀ) v
    after    k = cat(cache, hadamard(k))         softmax(hadamard(q) kᵀ) v

(q R)(k R)ᵀ = q kᵀ, so the scores stay. Keys turn where they are computed, before they are repeated for their group's
queries; what is an input of the graph and joined by keys that it computes, or written by them, is a cache of such keys.
"""

from collections.abc import Sequence

from torch.fx import Graph, GraphModule, Node
from torch.nn import Parameter

from torchqx.errors import UnsupportedError
from torchqx.fx_passes.in_place import changing_values, memory_of, written
from torchqx.fx_passes.lower import HADAMARD
from torchqx.fx_passes.rotations.carriers import Shape, carried
from torchqx.fx_passes.rotations.frames import reads_values
from torchqx.fx_passes.sites import AttentionSite
from torchqx.fx_passes.sites.ops import RESHAPES, fake, is_cast, is_identity, op_name
from torchqx.rotations import SMALLEST_BLOCK, Hadamard, choose

_MOVES = RESHAPES | {"transpose", "permute", "getitem", "select", "narrow", "expand", "contiguous", "repeat_interleave",
                     "repeat", "chunk", "split", "unbind"}
_JOINS = ("cat", "concat", "concatenate")
_SOURCES = {"copy": 1, "setitem": 2, "index_put": 2, "index_copy": 3}
_REMEDY = "leave rotate_keys off for this model."


def rotate_keys(gm: GraphModule, attentions: Sequence[AttentionSite]) -> dict[str, tuple[str, str]]:
    """Rewrite ``gm`` in place. Returns site key -> what was done, and why nothing, as the report says them.

    Raises:
        UnsupportedError: keys come from outside without any that the graph adds (nothing tells whether they are
            rotated), something else reads them too, or they are written to in place.
    """
    words: dict[str, tuple[str, str]] = {}
    turning: dict[Shape, list[AttentionSite]] = {}
    for site in attentions:
        width = fake(site.q).shape[-1]
        rotation = choose(width) if isinstance(width, int) else Hadamard(1)
        if site.key_transposed or rotation.block < SMALLEST_BLOCK:
            small = f"heads of {width} have no Hadamard block of {SMALLEST_BLOCK} or more"
            words[site.key] = "", f"keys not rotated: {'they are kept transposed' if site.key_transposed else small}"
            continue
        words[site.key] = f"queries and keys: {rotation.words(width)}", ""
        turning.setdefault(Shape(rotation.block, width), []).append(site)
    for shape, sites in turning.items():
        _Keys(gm.graph, shape, sites).rotate()
    gm.graph.lint()
    gm.recompile()
    return words


class _Keys:
    """The keys of all attentions with heads of one width."""

    def __init__(self, graph: Graph, shape: Shape, sites: Sequence[AttentionSite]) -> None:
        self.graph, self.shape, self.sites = graph, shape, sites
        self.writes = [n for n in graph.nodes if written(n) is not None]
        self.places: dict[Node, None] = {}  # where keys are computed
        self.seen: set[Node] = set()
        for site in sites:
            self._back(site.k, site, joined=False)
        changing = changing_values(graph.nodes)
        for value in (*self.places, *(site.q for site in sites)):
            if value in changing:
                raise UnsupportedError("queries or keys are written in place", where=sites[0].key, remedy=_REMEDY)
        for place in self.places:
            self._check(place)

    def rotate(self) -> None:
        for site in self.sites:
            if site.q is not site.k:
                turned = self._hadamard(site.q)
                for node in site.nodes:
                    if node is not site.k:
                        node.replace_input_with(site.q, turned)
                site.q = turned
        for place in self.places:
            readers = [user for user in place.users if self._takes(user, place)]
            turned = self._hadamard(place)
            for reader in readers:
                reader.replace_input_with(place, turned)
            for site in self.sites:
                site.k = turned if site.k is place else site.k

    def _hadamard(self, value: Node) -> Node:
        after = value
        if value.op in ("placeholder", "get_attr"):
            after = [n for n in self.graph.nodes if n.op in ("placeholder", "get_attr")][-1]
        with self.graph.inserting_after(after):
            node = self.graph.call_function(HADAMARD, (value, None, self.shape.block, False))
        node.meta = dict(value.meta)
        return node

    def _moves(self, node: Node) -> bool:
        return (op_name(node) in _MOVES or is_cast(node) or is_identity(node)) and carried(node, self.shape) is not None

    def _back(self, node: Node, site: AttentionSite, joined: bool) -> None:
        """Go back to where the keys in ``node`` are computed."""
        if node in self.seen:
            return
        self.seen.add(node)
        outside = node.op == "placeholder" and not isinstance(node.meta.get("example_value"), Parameter)
        if outside or written(node) is not None:
            self._cache(node, site, joined)
        elif self._moves(node):
            self._back(node.args[0], site, joined)
        elif op_name(node) in _JOINS and (found := carried(node, self.shape)) is not None:
            for _, i in found.slots:
                self._back(node.args[0][i], site, joined=True)
        else:
            self.places[node] = None

    def _cache(self, node: Node, site: AttentionSite, joined: bool) -> None:
        """A tensor from outside: keys that are written into it are rotated."""
        memory = memory_of(node)
        writes = [n for n in self.writes if memory is not None and memory_of(written(n)) == memory]
        for write in writes:
            position = _SOURCES.get(op_name(write))
            if position is None or not isinstance(source := write.args[position], Node):
                raise UnsupportedError(f"{op_name(write)} writes its keys", where=site.key, remedy=_REMEDY)
            self._back(source, site, joined=True)
        if not writes and not joined:
            raise UnsupportedError("its keys are an input of the graph", where=site.key, remedy=_REMEDY)

    def _takes(self, user: Node, value: Node) -> bool:
        """Whether ``user`` reads ``value`` as keys: an attention, a cache, or what leads to them."""
        if user.op == "output" or written(user) is not None or self._leads_on(user):
            return True
        return any(user in site.nodes and site.k is value for site in self.sites)

    def _leads_on(self, user: Node) -> bool:
        joins = op_name(user) in _JOINS and carried(user, self.shape) is not None
        return self._moves(user) or (joins and all(map(self._is_key, user.args[0])))

    def _is_key(self, part: Node) -> bool:
        value = fake(part)
        return part in self.seen or (value is not None and value.numel() == 0)

    def _check(self, value: Node) -> None:
        """Whatever reads keys further on reads them as keys; where they are computed, others keep what they read."""
        for user in value.users:
            if self._leads_on(user):
                self._check(user)
            elif value not in self.places and reads_values(user, value) and not self._takes(user, value):
                raise UnsupportedError(f"its keys are also read by {op_name(user)}", where=self.sites[0].key,
                                       remedy=_REMEDY)
