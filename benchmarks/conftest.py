"""pytest-benchmark for the kernels: every round times the peers too, and the JSON says on which machine."""

import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.kernels.case import OURS, Case
from benchmarks.limits import copy_rate, matmul_rates
from benchmarks.memory import keep_memory
from benchmarks.records import machine
from benchmarks.turns import Turn


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kernels")
    group.addoption("--threads", type=int, default=1, help="Threads of the kernels.")
    group.addoption("--rounds", type=int, default=11, help="Turns of each arm.")
    group.addoption("--turn-seconds", type=float, default=0.004, help="Length of one turn.")


@pytest.fixture(scope="session", autouse=True)
def process(pytestconfig: pytest.Config) -> None:
    """As many threads as ``--threads`` says, and memory that stays."""
    keep_memory()
    torch.set_num_threads(pytestconfig.getoption("threads"))


@pytest.fixture
def run(benchmark: BenchmarkFixture, pytestconfig: pytest.Config) -> Callable[[Case], None]:
    """Time a case: in each round first the peers, then ours. pytest-benchmark's own figures are of our whole turns."""
    def timed(case: Case) -> None:
        benchmark.group = case.kernel
        with torch.inference_mode():
            turns = {name: Turn(call, pytestconfig.getoption("turn_seconds")) for name, call in case.arms().items()}
            ours, peers = turns[OURS], [turn for name, turn in turns.items() if name != OURS]
            benchmark.pedantic(ours, setup=lambda: [turn() for turn in peers] and None,
                               rounds=pytestconfig.getoption("rounds"))
        benchmark.extra_info |= {
            "kernel": case.kernel, "size": case.size, "int8_multiply_adds": case.int8, "calls_in_a_round": ours.count,
            "median_us": {name: 1e6 * statistics.median(turn.seconds) for name, turn in turns.items()},
            "least_us": {name: 1e6 * min(turn.seconds) for name, turn in turns.items()},
        }

    return timed


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Machine, versions and measured limits as all records have them; no computer's name, no raw data."""
    del output_json["commit_info"], output_json["machine_info"]
    repeats = config.getoption("rounds")
    output_json |= {"machine": machine(), "threads": config.getoption("threads"),
                    "matmul_gmacs": matmul_rates(repeats), "copy_gbytes": copy_rate(repeats)}
    for result in output_json["benchmarks"]:
        del result["params"], result["options"]
        result["stats"].pop("data", None)
