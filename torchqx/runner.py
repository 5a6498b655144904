"""What the backend hands to Dynamo for one graph: calibrates, solves, and runs it, for whichever model calls.

Dynamo does not guard the identity of parameters: one traced graph serves every instance of a class, every layer that is
compiled on its own, and a parameter that was replaced. So everything that depends on a weight's values is looked up
when the graph is called, by the identity and version of the tensors that came in.
"""

import warnings
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from torchqx.calibration import Calibration
from torchqx.errors import TorchqxWarning
from torchqx.executable import Executable, TracedInputs
from torchqx.folding import absorbed_norms, fold_quantized, refusal
from torchqx.fx_passes.attention_kernel import use_attention_kernel
from torchqx.fx_passes.derived import Derived
from torchqx.fx_passes.few_rows import use_few_rows_kernel
from torchqx.fx_passes.fuse_codes import fuse_codes
from torchqx.fx_passes.fuse_epilogue import fuse_epilogues
from torchqx.fx_passes.fuse_rotations import fuse_rotations
from torchqx.fx_passes.gated import fuse_gates
from torchqx.fx_passes.lower import OpStructure
from torchqx.fx_passes.quantize import QuantizedGraph, quantize_graph
from torchqx.fx_passes.quantize_norms import quantize_norms
from torchqx.fx_passes.quantize_rows import quantize_rows
from torchqx.fx_passes.quantize_scan import structure_of
from torchqx.fx_passes.rotary import turn_in_one_pass
from torchqx.fx_passes.rotations.keys import rotate_keys
from torchqx.fx_passes.sites import GraphSites, LinearOp
from torchqx.fx_passes.sites.attention import find_attentions
from torchqx.fx_passes.store_rows import store_rows
from torchqx.fx_passes.store_shared import store_shared
from torchqx.gradients import refuse_gradients
from torchqx.lowering_choice import Policy, choose_lowerings
from torchqx.plan import SiteRecord
from torchqx.sequential import solve_ready
from torchqx.session import Session
from torchqx.storage import QuantizedWeight
from torchqx.watched import Watched, plain_part, version_of


class Binding:
    """The graph's way of running for one set of weights; valid as long as those are the same and unwritten."""

    def __init__(self, watched: Watched, executable: Executable, inputs: list[Any]) -> None:
        self.serves = watched.unchanged
        self.executable, self.inputs = executable, inputs
        self.passed = [(k, s) for k, s in enumerate(executable.sources) if isinstance(s, int)]

    def __call__(self, args: Sequence[Any]) -> Any:
        inputs = self.inputs.copy()
        for k, source in self.passed:
            inputs[k] = args[source]
        return self.executable(args, inputs)


class GraphRunner:
    """Callable with a Dynamo graph's arguments.

    Args:
        names: weight placeholder -> the parameter's name in the traced module.
        records: what the report says of the graph's other sites.
        policy: which quantized matmuls are lowered to integers.
        options: Inductor's, as ``torch.compile`` takes them.
    """

    def __init__(self, gm: GraphModule, traced: TracedInputs, sites: GraphSites, names: dict[Node, str],
                 records: list[SiteRecord], session: Session, lowering: str, policy: Policy,
                 options: dict[str, Any]) -> None:
        self.gm, self.traced, self.sites, self.session = gm, traced, sites, session
        self.lowering, self.policy, self.options = lowering, policy, options
        self.names, self.records = names, records
        self.calibration = Calibration(self)
        self.position = {n: i for i, n in enumerate(traced.placeholders)}
        self.operations = [op for site in sites.linears for op in site.ops]
        self.anchor = self.position[self.operations[0].weight] if self.operations else None
        self.executables: dict[tuple, Executable] = {}
        self.refusals: dict[tuple, SiteRecord] = {}  # of folds, for the report on every model
        self.bindings: dict[int, Binding] = {}

    def __call__(self, *args: Any) -> Any:
        if torch.is_grad_enabled():
            with torch.no_grad():
                outputs = self._run(args)
            return refuse_gradients(args, outputs)
        return self._run(args)

    def _run(self, args: Sequence[Any]) -> Any:
        key = 0 if self.anchor is None else id(args[self.anchor])
        binding = self.bindings.get(key)
        if binding is None or not binding.serves(args):
            with self.session.lock:
                with torch.inference_mode(False), torch.no_grad():
                    self.tell(args, self.records)
                    wanted = self.calibration.wanted(args)
                if wanted:
                    return self._calibrate(args)
                binding = self.bindings[key] = self._bind(args, key)
        return binding(args)

    def _calibrate(self, args: Sequence[Any]) -> Any:
        outputs, states = self.calibration(args)
        if not self.session.calibration_only:
            with torch.inference_mode(False), torch.no_grad():
                solve_ready(self.session, states)
        return outputs

    def tell(self, args: Sequence[Any], records: list[SiteRecord]) -> None:
        """Keep ``records`` for the report on whichever model calls. Storage tensors carry theirs with them."""
        parameters = {name: args[self.position[n]] for n, name in self.names.items()}
        self.session.add_records({name: p for name, p in parameters.items() if not isinstance(p, QuantizedWeight)},
                                 records)

    def weight(self, op: LinearOp, args: Sequence[Any]) -> Tensor:
        return args[self.position[op.weight]]

    def parameters(self, args: Sequence[Any]) -> dict[Node, Tensor]:
        """Placeholder -> what the call passes for it, for the model's float parameters."""
        given = {n: args[self.position[n]] for n in self.names}
        return {n: p for n, p in given.items() if not isinstance(p, QuantizedWeight)}

    def quantized(self, op: LinearOp, args: Sequence[Any]) -> QuantizedWeight | None:
        """The storage tensor for ``op``: the model's own, or the one that was solved for its float weight."""
        weight = self.weight(op, args)
        if isinstance(weight, QuantizedWeight):
            return weight if weight.matrix_layout == op.layout else None
        state = self.session.states.get(weight)
        return None if state is None else state.quantized(weight)

    def _bind(self, args: Sequence[Any], key: int) -> Binding:
        found = {op.node: self.quantized(op, args) for op in self.operations}
        structures = {}
        for site in self.sites.linears:
            structures |= structures_of([(op, found[op.node]) for op in site.ops if found[op.node] is not None])
        weights = {op.node: self.weight(op, args) for op in self.operations}
        structures = choose_lowerings(self.sites, structures, weights, self.policy, self.session.note_choice)
        stored = [n for n, i in self.position.items() if isinstance(args[i], QuantizedWeight)]
        absorbed = absorbed_norms(self.sites, found, self.parameters(args))
        by_weight = {op.weight: w for op in self.operations if (w := found[op.node]) is not None}
        by_weight |= {n: args[self.position[n]] for n in stored}
        scans = {site: s for site in self.sites.scans if (s := structure_of(site, found)) is not None}
        kind = (tuple(structures.get(op.node) for op in self.operations), tuple(n.name for n in stored),
                tuple(scans.get(site) for site in self.sites.scans),
                tuple((w.name, norm.key) for w, norm in absorbed.items()), self._turns_keys(by_weight.values()))
        if kind not in self.executables:
            guards = self.traced.guards()
            graph = quantize_graph(self.gm, self.sites, structures, stored, scans)
            kept = fold_quantized(graph, absorbed, self._inputs(graph, by_weight, args))
            if kept:
                warnings.warn(f"rotations stay online: {kept}", TorchqxWarning, stacklevel=2)
                self.refusals[kind] = refusal(self.operations, self.names.values(), kept)
            if self._turns_keys(by_weight.values()):
                rotate_keys(graph.module, find_attentions(graph.module))
            fuse_codes(graph)
            fuse_rotations(graph.module)
            fuse_gates(graph)
            fuse_epilogues(graph.module)
            use_attention_kernel(graph.module)
            store_shared(graph.module)
            turn_in_one_pass(graph.module)
            use_few_rows_kernel(graph.module)
            quantize_norms(graph.module)
            quantize_rows(graph.module)
            store_rows(graph.module)
            assert self.traced.guards() == guards, "a pass relies on a size that may change"
            self.executables[kind] = Executable(graph, self.traced, self.lowering, self.options)
        if kind in self.refusals:
            self.tell(args, [self.refusals[kind]])
        executable = self.executables[kind]
        inputs = [self._derive(item, by_weight, args) if isinstance(item, Derived) else None
                  for item in executable.graph.inputs]
        executable.prepare([v for v in inputs if v is not None])
        watched = {i for s in executable.sources if isinstance(s, tuple) for i in s}
        watched |= {self.position[n] for n in (*(op.weight for op in self.operations),
                                               *(norm.weight for norm in absorbed.values()))}
        runner = weakref.ref(self)

        def forget() -> None:
            if (alive := runner()) is not None:
                alive.bindings.pop(key, None)

        return Binding(Watched(args, sorted(watched), forget), executable, inputs)

    def _turns_keys(self, weights: Iterable[QuantizedWeight]) -> bool:
        """Whether keys are to be rotated that are not yet: a recipe's session does it before it calibrates."""
        return not self.session.recipe.rotate_keys and any(weight.rotated_keys for weight in weights)

    def _inputs(self, graph: QuantizedGraph, weights: dict[Node, QuantizedWeight], args: Sequence[Any]) -> list[Any]:
        """Everything that ``graph`` takes."""
        return [self._derive(i, weights, args) if isinstance(i, Derived) else args[self.position[i]]
                for i in graph.inputs]

    def _derive(self, item: Derived, weights: dict[Node, QuantizedWeight], args: Sequence[Any]) -> Tensor:
        stored = [weights[n] for n in item.weights]
        others = [None if n is None else args[self.position[n]] for n in item.others]
        versions = [None if t is None else version_of(t) for t in (*stored, *others)]
        first = stored[0] if stored else others[0]
        made = self.session.derived.setdefault(plain_part(first), {})
        key = (item.build, *(id(plain_part(t)) for t in stored[1:]), *map(id, others))
        if key not in made or made[key][0] != versions:
            with torch.inference_mode(False), torch.no_grad():
                made[key] = versions, item.build(stored, others)
        return made[key][1]


def structures_of(ops: list[tuple[LinearOp, QuantizedWeight]]) -> dict[Node, OpStructure]:
    """Structures of one site's quantized ops; those with equal transforms and quantizers get equal sharing numbers."""
    kinds: list[QuantizedWeight] = []
    structures = {}
    for op, weight in ops:
        number = next((i for i, other in enumerate(kinds) if _reads_alike(weight, other)), len(kinds))
        if number == len(kinds):
            kinds.append(weight)
        structures[op.node] = OpStructure(weight.activation_spec, weight.weight_spec, weight.smooth is not None,
                                          weight.shift is not None, weight.device, number, weight.hadamard,
                                          weight.norm is not None, weight.output_hadamard)
    return structures


def _reads_alike(a: QuantizedWeight, b: QuantizedWeight) -> bool:
    def same(x: Tensor | None, y: Tensor | None) -> bool:
        return (x is None and y is None) or (x is not None and y is not None and torch.equal(x, y))

    return (a.activation_quantizer, a.rotation) == (b.activation_quantizer, b.rotation) and all(
        same(getattr(a, n), getattr(b, n)) for n in ("smooth", "norm", "shift", "per_tensor_scale"))
