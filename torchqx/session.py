"""All that is known about the sites of the models compiled with one recipe; found through the models' own tensors.

Weights are keys by identity and held weakly: a second instance, a replaced parameter, or a layer compiled on its own
each find their own state, and a model that is gone takes its state along.
"""

import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.utils.weak import WeakIdKeyDictionary

from torchqx.cost_model import Choice
from torchqx.fx_passes.sites import LinearSite
from torchqx.plan import SiteRecord
from torchqx.recipe import AffineRecipe
from torchqx.scan_sites import follow_carrier, solve_scans
from torchqx.site_state import Operation, SiteState
from torchqx.solve import solve_site
from torchqx.storage import QuantizedWeight
from torchqx.watched import plain_part


class Call:
    """A calibrating call of a graph that sequential calibration will run again, with copies of its inputs.

    The model's float parameters are held weakly: who drops the model before it is solved drops the call.

    Args:
        gone: called with the call when one of them is no more.

    Attributes:
        autocast: the caller's, on or off, for the devices of the inputs.
    """

    def __init__(self, runner: Any, args: Sequence[Any], gone: Callable[["Call"], None]) -> None:
        self.runner = runner
        self.autocast = [torch.autocast(d, torch.get_autocast_dtype(d), torch.is_autocast_enabled(d))
                         for d in sorted({a.device.type for a in args if isinstance(a, Tensor)})]
        self._args = [self._held(a, gone) for a in args]

    def _held(self, argument: Any, gone: Callable[["Call"], None]) -> Any:
        if isinstance(argument, Parameter) and not isinstance(argument, QuantizedWeight):
            return weakref.ref(argument, lambda _: gone(self))
        return argument.clone() if isinstance(argument, Tensor) and not isinstance(argument, Parameter) else argument

    @property
    def args(self) -> list[Any]:
        return [a() if isinstance(a, weakref.ref) else a for a in self._args]

    def weights(self) -> tuple[int, ...]:
        """Tells models apart that share one graph."""
        return tuple(id(self.runner.weight(op, self.args)) for op in self.runner.operations)


ACTING: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""A float parameter -> the backend's session that was last bound to it: what acts on it, and what reports speak of."""


class Session:
    """States and records under one recipe. ``lock`` guards calibration, solving and compilation."""

    def __init__(self, recipe: AffineRecipe, calibration_only: bool = False) -> None:
        self.recipe = recipe
        self.calibration_only = calibration_only
        self.lock = threading.RLock()
        self.states: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.batches: list[Call] = []
        self.derived: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.graph_records: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.choices: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def state_of(self, site: LinearSite, weights: list[Tensor], names: list[str], skip: str) -> list[SiteState]:
        """The states of the site's weights, one per operation; all the same one where the site is new.

        A graph break may have shown this session only a part of the site's operations before: those keep their state.
        """
        operations = [Operation(op.key, op.layout, n) for op, n in zip(site.ops, names, strict=True)]
        recipe = self.recipe.for_linears(site.state_space)
        for weight in weights:
            state = self.states.get(weight)
            if state is not None and state.calibrating and len(state.alive()) < len(state.operations):
                del self.states[weight]  # another parameter of its site was replaced: they start again together
        if all(self.states.get(w) is None for w in weights):
            first = {id(w): i for i, w in reversed(list(enumerate(weights)))}  # one weight may serve two operations
            self._add(SiteState(site.key, [operations[i] for i in sorted(first.values())], site.ops[0].form,
                                recipe, skip, site.scan is not None), [weights[i] for i in sorted(first.values())])
        for weight, operation in zip(weights, operations, strict=True):
            if self.states.get(weight) is None:
                self._add(SiteState(operation.key, [operation], site.ops[0].form, recipe, skip,
                                    site.scan is not None), [weight])
        return [self.states[w] for w in weights]

    def _add(self, state: SiteState, weights: list[Tensor]) -> None:
        for i, weight in enumerate(weights):
            self.states[weight] = state
            state.adopt(weight, i)

    def solve(self, states: Iterable[SiteState]) -> None:
        """Solve the states that still calibrate, and the scans that they carry; see :func:`solve_site` for what it
        raises."""
        for state in states:
            solve_scans(state)
            self.solve_linear(state)

    def solve_linear(self, state: SiteState) -> None:
        """Solve ``state`` alone, if it still calibrates; what it was to carry stays float with it."""
        if state.calibrating:
            solve_site(state, state.weights())
            follow_carrier(state)

    def remember(self, runner: Any, args: Sequence[Any]) -> Call | None:
        """Keep a calibrating call's inputs where sequential calibration will run it again."""
        if self.recipe.calibration != "sequential":
            return None
        self.batches.append(Call(runner, args, self._forget))
        return self.batches[-1]

    def _forget(self, call: Call) -> None:
        self.batches = [c for c in self.batches if c is not call]

    def add_records(self, anchors: dict[str, Tensor], records: list[SiteRecord]) -> None:
        """Remember what a graph says of its other sites, under every parameter that the graph reads.

        Args:
            anchors: the parameters by the names that the traced module gives them.
        """
        for name, anchor in anchors.items():
            if not self.calibration_only:
                ACTING[anchor] = self
            self.graph_records.setdefault(anchor, {}).update({r.key: (name, r) for r in records})

    def note_choice(self, weight: Tensor, rows: int, choice: Choice | None) -> None:
        """Remember what the cost model chose for ``rows`` rows times ``weight``; None where it was not asked."""
        others = {r: c for r, c in self.choices_for(weight).items() if r != rows}
        # In one piece, for a report that reads it from another thread.
        self.choices[plain_part(weight)] = others if choice is None else others | {rows: choice}

    def choices_for(self, weight: Tensor) -> dict[int, Choice]:
        """Rows -> what was chosen for the matmul with ``weight``, in the graphs that were compiled so far."""
        return self.choices.get(plain_part(weight)) or {}

    def states_in(self, model: Module) -> list[SiteState]:
        """The states of ``model``'s own parameters, each once, in the order of the parameters; where another session
        acts on a parameter now, it is that one's."""
        found = (self.states.get(p) for p in model.parameters() if self.acts_on(p))
        return list(dict.fromkeys(s for s in found if s is not None))

    def records_at(self, parameter: Tensor) -> list[tuple[str, SiteRecord]]:
        """Records of what is no linear site in the graphs that read ``parameter``, with the name it has there; none
        where another session acts on it now."""
        return list((self.graph_records.get(parameter) or {}).values()) if self.acts_on(parameter) else []

    def acts_on(self, parameter: Tensor) -> bool:
        """Whether ``parameter`` is this session's: that of a prepared model, or the last compiled one's."""
        return self.calibration_only or ACTING.get(parameter) is self

    def knows(self, model: Module) -> bool:
        """Whether a graph with a parameter of ``model`` was seen."""
        return any(p in self.states or p in self.graph_records for p in model.parameters())


class Sessions:
    """The sessions of this process, one per recipe, for the backend."""

    def __init__(self) -> None:
        self._by_recipe: dict[str, Session] = {}
        self._lock = threading.Lock()

    def get(self, recipe: AffineRecipe) -> Session:
        with self._lock:
            return self._by_recipe.setdefault(recipe.fingerprint(), Session(recipe))

    def of(self, model: Module) -> list[Session]:
        """Those that act on a parameter of ``model``."""
        return [s for s in list(self._by_recipe.values()) if any(map(s.acts_on, model.parameters()))]

    def choices_for(self, weight: Tensor) -> dict[int, Choice]:
        """:meth:`Session.choices_for` of the one that acts on a float weight; for an integer one, of all together."""
        acting = ACTING.get(weight)
        sessions = list(self._by_recipe.values()) if acting is None else [acting]
        return {rows: c for s in sessions for rows, c in s.choices_for(weight).items()}


SESSIONS = Sessions()
