"""Inductor's launcher of one kernel (``CachingAutotuner``), as far as it goes without a device."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch._inductor.runtime import triton_heuristics

from torchqx.testing.fake_cuda import private
from torchqx.testing.resources import Resources, resources
from torchqx.testing.sources import load_source
from torchqx.testing.wrapper import GeneratedKernel


class Autotuner:
    """``kernel`` loaded; to be made and used inside ``fake_cuda``, or where Triton interprets."""

    def __init__(self, kernel: GeneratedKernel) -> None:
        self.tuner = getattr(load_source(kernel.source), kernel.name)
        self.configs: list[Any] = private(self.tuner, "configs")
        self.signature: dict[str, str] = private(self.tuner, "triton_meta")["signature"]
        self.meta: dict[str, Any] = private(self.tuner, "inductor_meta")

    def arguments(self, values: tuple[Any, ...]) -> dict[str, Any]:
        """Names for what a launch passes: all but the declared constexprs, also what is constant, as a None is."""
        parameters = inspect.signature(private(self.tuner, "fn").fn).parameters
        names = [n for n, p in parameters.items() if "constexpr" not in str(p.annotation)]
        return dict(zip([*names, *self.meta.get("extra_launcher_args", ())], values, strict=True))

    def grid(self, values: tuple[Any, ...]) -> tuple[int, int, int]:
        """Blocks of a launch with ``values``, in the first configuration."""
        config = self.configs[0]
        expression = triton_heuristics.GridExpr.from_meta(self.meta, config)
        return tuple(private(expression, "eval_slow")(self.arguments(values) | config.kwargs))

    def interpret(self, values: tuple[Any, ...]) -> None:
        """Run a launch on CPU tensors, in the first configuration, where Triton interprets."""
        given = self.arguments(values)
        constants = self.tuner.triton_meta.get("constants", {})
        given |= {n: v for n, v in constants.items() if self.signature.get(n) == "constexpr"}
        given |= self.configs[0].kwargs
        fn = private(self.tuner, "fn")
        fn[self.grid(values)](**{n: v for n, v in given.items() if n in fn.arg_names})

    def compile(self, every: bool) -> list[Resources]:
        """Resources of the first configuration, or of ``every`` one."""
        precompile = private(self.tuner, "_precompile_config")
        with _full_compile_results():
            return [resources(precompile(config).kernel, str(config))
                    for config in (self.configs if every else self.configs[:1])]


@contextmanager
def _full_compile_results() -> Iterator[None]:
    """The static launcher keeps a cubin alone; the report needs the other stages too."""
    launcher = private(triton_heuristics, "StaticTritonCompileResult")
    with mock.patch.object(launcher, "can_statically_launch", staticmethod(lambda *_, **__: None)):
        yield
