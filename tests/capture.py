"""Traced graphs as a compiler backend gets them, for tests."""

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule

Captured = list[tuple[GraphModule, list[Any]]]


class Recorder:
    """A backend that keeps each graph with its example inputs and runs it as it is."""

    def __init__(self) -> None:
        self.graphs: Captured = []

    def __call__(self, gm: GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        self.graphs.append((gm, list(example_inputs)))
        return gm.forward


def capture(model: Callable[..., Any], *args: Any, dynamic: bool | None = False, **kwargs: Any) -> Captured:
    """Run ``model`` once through torch.compile, without gradients; the graphs Dynamo made, in order."""
    torch._dynamo.reset()
    recorder = Recorder()
    with torch.no_grad():
        torch.compile(model, backend=recorder, dynamic=dynamic)(*args, **kwargs)
    return recorder.graphs


def capture_one(model: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[GraphModule, list[Any]]:
    """:func:`capture` where one graph is expected."""
    graphs = capture(model, *args, **kwargs)
    assert len(graphs) == 1, f"{len(graphs)} graphs where one was expected"
    return graphs[0]
