"""Opaque attention and encoder-layer functions -> the ops they stand for, so that everything after sees those.

| before | after |
|---|---|
| multi_head_attention_forward(q, k, v, …, W_in, …, W_out, …) | linear, scaled_dot_product_attention, linear |
| _transformer_encoder_layer_fwd(x, …), the inference fast path | the same, with layer_norm, add, relu or gelu, linear |

New nodes carry the module path that the unfused code has, so site keys are the same on both paths.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.fx import GraphModule, Node, Proxy
from torch.fx.node import map_arg
from torch.fx.proxy import GraphAppendingTracer
from torch.nn import functional as F

from torchqx.fx_passes.sites.keys import source_path
from torchqx.fx_passes.sites.ops import argument, fake, op_name


def expand_opaque(gm: GraphModule) -> GraphModule:
    """Expand, in place, the functions of the table above; a call that has no exact expansion stays as it is."""
    for node in list(gm.graph.nodes):
        expand = _EXPANSIONS.get(op_name(node))
        if expand is not None:
            expand(gm, node)
    gm.graph.lint()
    gm.recompile()
    return gm


class _Writer(GraphAppendingTracer):
    """Turns ordinary PyTorch code into nodes that stand before ``place``, with its metadata and fake values."""

    def __init__(self, gm: GraphModule, place: Node) -> None:
        super().__init__(gm.graph)
        self._place = place
        self._meta = {key: value for key, value in place.meta.items() if key != "example_value"}

    def operand(self, value: Any) -> Any:
        return Proxy(value, self) if isinstance(value, Node) else value

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        with self.graph.inserting_before(self._place):
            node = super().create_node(*args, **kwargs)
        node.meta = {**self._meta, "example_value": _value(node)}
        return node

    @contextmanager
    def inside(self, weight: Proxy) -> Iterator[None]:
        """Give nodes the path of the module that owns ``weight``."""
        before = self._meta
        stack = before.get("nn_module_stack", {})
        root = next(iter(stack.values()))[0].partition("]")[0] + "]" if stack else "L['self']"
        module = source_path(weight.node).rpartition(".")[0]
        self._meta = {**before, "nn_module_stack": {**stack, module: (f"{root}.{module}", None)}}
        yield
        self._meta = before


def _value(node: Node) -> Any:
    args, kwargs = map_arg((node.args, node.kwargs), lambda operand: operand.meta["example_value"])
    values = [value for operand in node.all_input_nodes if (value := fake(operand)) is not None]
    if not values:  # an item of a tuple
        return node.target(*args, **kwargs)
    # Not the mode of the tracing context: while a backend runs, that is another one than Dynamo traced with.
    with values[0].fake_mode, torch.no_grad():
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)


def _expand_attention(gm: GraphModule, node: Node) -> None:
    """multi_head_attention_forward on [L, B, E] or [L, E]."""
    writer = _Writer(gm, node)

    def given(position: int, name: str, default: Any = None) -> Any:
        return writer.operand(argument(node, position, name, default=default))

    items = {user: user.args[1] for user in node.users if user.target is operator.getitem}
    extra = (given(7, "bias_k"), given(8, "bias_v"), given(21, "static_k"), given(22, "static_v"))
    drops = given(13, "training", True) and given(10, "dropout_p")
    if any(part is not None for part in extra) or given(9, "add_zero_attn") or drops or len(items) != len(node.users):
        return
    inputs, heads = (given(0, "query"), given(1, "key"), given(2, "value")), given(4, "num_heads")
    if given(17, "use_separate_proj_weight", False):
        weights: Any = given(18, "q_proj_weight"), given(19, "k_proj_weight"), given(20, "v_proj_weight")
    else:
        weights = given(5, "in_proj_weight")
    order = (1, 2, 0, 3) if fake(inputs[0].node).ndim == 3 else (1, 0, 2)
    projected = _project(inputs, weights, given(6, "in_proj_bias"))
    q, k, v = (part.unflatten(-1, (heads, -1)).permute(order) for part in projected)
    terms = [_on_heads(given(16, "attn_mask"), heads, q.node), _on_keys(given(14, "key_padding_mask"), q.node)]
    if any(position == 1 and user.users for user, position in items.items()):
        mixed, shown = _spelled_out(q, k, v, _sum(terms))
        shown = shown.mean(-3) if given(23, "average_attn_weights", True) else shown
    else:
        mixed, shown = F.scaled_dot_product_attention(q, k, v, attn_mask=_sum(terms)), None
    back = (2, 0, 1, 3) if len(order) == 4 else order
    out = F.linear(mixed.permute(back).flatten(-2), given(11, "out_proj_weight"), given(12, "out_proj_bias"))
    for user, position in items.items():
        replacement = out if position == 0 else shown
        if replacement is not None:
            user.replace_all_uses_with(replacement.node)
        gm.graph.erase_node(user)
    gm.graph.erase_node(node)


def _project(inputs: Sequence[Proxy], weights: Any, bias: Any) -> list[Proxy]:
    """q, k, v by one matmul where they read one value, else by one each."""
    packed = isinstance(weights, Proxy)
    if packed and len({value.node for value in inputs}) == 1:
        projected = F.linear(inputs[0], weights, bias).chunk(3, -1)
        return [projected[i] for i in range(3)]
    weights = weights.chunk(3) if packed else weights
    biases = bias.chunk(3) if bias is not None else (None, None, None)
    return [F.linear(inputs[i], weights[i], biases[i]) for i in range(3)]


def _spelled_out(q: Proxy, k: Proxy, v: Proxy, mask: Any) -> tuple[Proxy, Proxy]:
    """Attention whose weights are asked for too."""
    scores = torch.matmul(q, k.transpose(-2, -1)) * fake(q.node).shape[-1] ** -0.5
    weights = F.softmax(scores if mask is None else scores + mask, dim=-1)
    return torch.matmul(weights, v), weights


def _sum(terms: Sequence[Any]) -> Any:
    first, *rest = [term for term in terms if term is not None] or [None]
    for term in rest:
        first = first + term
    return first


def _additive(mask: Proxy, like: Node) -> Proxy:
    """A mask that is true where attention is forbidden -> a term for the scores; an additive one stays."""
    if fake(mask.node).dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=fake(like).dtype).masked_fill(mask, float("-inf"))


def _on_heads(mask: Any, heads: int, like: Node) -> Any:
    """[L, S] or [B·H, L, S] -> what broadcasts over [B, H, L, S]."""
    if mask is None:
        return None
    per_head = fake(mask.node).ndim == 3 and fake(like).ndim == 4
    return _additive(mask.unflatten(0, (-1, heads)) if per_head else mask, like)


def _on_keys(mask: Any, like: Node) -> Any:
    """[B, S] -> [B, 1, 1, S]; an unbatched [S] broadcasts as it is."""
    if mask is None:
        return None
    return _additive(mask.unsqueeze(1).unsqueeze(2) if fake(mask.node).ndim == 2 else mask, like)


def _expand_layer(gm: GraphModule, node: Node) -> None:
    """An encoder layer on [B, L, E]. A float mask is added to the scores, as the unfused code does."""
    writer = _Writer(gm, node)
    schema = torch.ops.aten._transformer_encoder_layer_fwd.default._schema.arguments
    given = {part.name: writer.operand(argument(node, i, part.name)) for i, part in enumerate(schema)}
    x, heads, mask = given["src"], given["num_heads"], given["mask"]
    if fake(x.node).ndim != 3:
        return

    def norm(value: Proxy, which: int) -> Proxy:
        weight, bias = given[f"norm_weight_{which}"], given[f"norm_bias_{which}"]
        with writer.inside(weight):
            return F.layer_norm(value, (given["embed_dim"],), weight, bias, given["eps"])

    def attend(value: Proxy) -> Proxy:
        with writer.inside(given["qkv_weight"]):
            projected = _project((value, value, value), given["qkv_weight"], given["qkv_bias"])
            q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in projected)
            term = None
            if mask is not None:
                hidden = mask.unsqueeze(1).unsqueeze(2) if given["mask_type"] == 1 else mask
                term = _additive(hidden, q.node)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=term)
            return F.linear(mixed.transpose(1, 2).flatten(-2), given["proj_weight"], given["proj_bias"])

    def feed_forward(value: Proxy) -> Proxy:
        with writer.inside(given["ffn_weight_1"]):
            inner = F.linear(value, given["ffn_weight_1"], given["ffn_bias_1"])
        inner = F.gelu(inner) if given["use_gelu"] else F.relu(inner)
        with writer.inside(given["ffn_weight_2"]):
            return F.linear(inner, given["ffn_weight_2"], given["ffn_bias_2"])

    if given["norm_first"]:
        x = x + attend(norm(x, 1))
        x = x + feed_forward(norm(x, 2))
    else:
        x = norm(x + attend(x), 1)
        x = norm(x + feed_forward(x), 2)
    node.replace_all_uses_with(x.node)
    gm.graph.erase_node(node)


_EXPANSIONS: dict[str, Callable[[GraphModule, Node], None]] = {
    "multi_head_attention_forward": _expand_attention,
    "_transformer_encoder_layer_fwd": _expand_layer,
}
