"""Runs of ``torchqx bench`` kept as files, and what changed between two: ratios, since times do not carry over."""

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import torch
from rich.table import Table

from torchqx.cli_bench import BASE, FLOAT_ARMS, OURS, Timing
from torchqx.errors import ConfigError

VERSIONED = ("torch", "torchqx")


@dataclass(frozen=True)
class Record:
    """One run: what was timed, where, and each arm's figures."""

    model: str
    batch: int
    length: int
    threads: int
    cores: int
    instructions: str
    versions: dict[str, str]
    date: str
    arms: list[Timing]

    @classmethod
    def of(cls, model: str, batch: int, length: int, threads: int, arms: list[Timing]) -> Self:
        """A run of this process, now."""
        return cls(model, batch, length, threads, os.cpu_count() or 1, torch.backends.cpu.get_cpu_capability(),
                   {name: version(name) for name in VERSIONED}, datetime.now(UTC).isoformat(timespec="seconds"), arms)

    @classmethod
    def read(cls, path: Path) -> Self:
        """What :meth:`write` wrote. Raises ConfigError if it is anything else."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            record = cls(**values | {"arms": [Timing(**arm) for arm in values["arms"]]})
            record.speeds(OURS)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"no record of a bench ({type(error).__name__}: {error})", where=str(path),
                              remedy="give a file that `torchqx bench --output` wrote, or a quantized directory."
                              ) from error
        return record

    def write(self, path: Path) -> None:
        """As :meth:`read` takes it."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    def speeds(self, arm: str) -> dict[str, float]:
        """How many times as fast as each compiled float model an arm was. Raises KeyError for an absent arm."""
        by_name = {timing.arm: timing for timing in self.arms}
        return {name: by_name[arm].times_faster_than(by_name[name]) for name in FLOAT_ARMS}

    def check_is_of(self, **wanted: str | int) -> None:
        """Raises ConfigError unless fields, such as the model and the batch, have the values ``wanted``."""
        unlike = [f"{name} {getattr(self, name)}, not {value}" for name, value in wanted.items()
                  if getattr(self, name) != value]
        if unlike:
            raise ConfigError(f"the base is a run of {'; '.join(unlike)}", where="--compare",
                              remedy="bench both with the same options.")


@dataclass(frozen=True)
class Comparison:
    """How fast torchqx was against the same arms, then and now.

    Attributes:
        speeds: arm -> (base, now), both as times the arm's speed.
    """

    base: str
    speeds: dict[str, tuple[float, float]]

    @classmethod
    def with_record(cls, now: Record, base: Record, name: str) -> Self:
        """Against an earlier run."""
        then, ours = base.speeds(OURS), now.speeds(OURS)
        return cls(f"{name}: {base.instructions}, {base.cores} cores, torch {base.versions['torch']}, {base.date}",
                   {arm: (then[arm], ours[arm]) for arm in FLOAT_ARMS})

    @classmethod
    def with_arm(cls, now: Record, name: str) -> Self:
        """Against the arm BASE of the same run."""
        by_name = {timing.arm: timing for timing in now.arms}
        then, ours = now.speeds(BASE), now.speeds(OURS)
        return cls(name, {arm: (then[arm], ours[arm]) for arm in FLOAT_ARMS}
                   | {BASE: (1.0, by_name[OURS].times_faster_than(by_name[BASE]))})

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"base": self.base, "speeds": {arm: {"base": then, "now": now, "ratio": now / then}
                                              for arm, (then, now) in self.speeds.items()}}

    def table(self) -> Table:
        """One row per arm."""
        table = Table(title=f"torchqx against {self.base}", header_style="bold")
        table.add_column("speed against")
        for name in ("base", "now", "now / base"):
            table.add_column(name, justify="right")
        for arm, (then, now) in self.speeds.items():
            table.add_row(arm, f"{then:.2f}x", f"{now:.2f}x", f"{now / then:.3f}")
        return table
