"""Measuring, and what is kept of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from torchqx import machine_rates
from torchqx.inductor_kernels.int8_linear.cpu import is_supported


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Small operands, few rounds, a cache of the test's own."""
    monkeypatch.setattr(machine_rates, "SIZE", 128)
    monkeypatch.setattr(machine_rates, "ROWS", (1, 5))
    monkeypatch.setattr(machine_rates, "ROUNDS", 2)
    monkeypatch.setattr(machine_rates, "cache_dir", lambda: str(tmp_path))
    machine_rates._rates.cache_clear()
    yield
    machine_rates._rates.cache_clear()


@pytest.mark.usefixtures("small")
def test_every_kernel_of_this_machine_is_timed() -> None:
    rates = machine_rates.measure()
    packed = {"packed"} if is_supported(torch.device("cpu")) else set()
    assert set(rates.matmul) == set(rates.call) == packed | {
        "integer", "group", "float32", "bfloat16", "float32 weight only", "bfloat16 weight only"}
    assert all(len(times) == 2 and 0 <= times[0] <= times[1] for times in rates.matmul.values())
    assert min(rates.call.values()) > 0 < rates.byte
    assert machine_rates.decode(machine_rates.encode(rates)) == rates


@pytest.mark.usefixtures("small")
def test_measured_once_per_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    first = machine_rates.machine_rates()
    machine_rates._rates.cache_clear()
    measured: list[int] = []
    monkeypatch.setattr(machine_rates, "measure", lambda: measured.append(1) or first)
    assert machine_rates.machine_rates() == first
    assert not measured, "another process finds the file"
    machine_rates._rates(torch.get_num_threads() + 1)
    assert measured == [1]


def test_the_processor_has_a_name() -> None:
    assert len(machine_rates.processor()) > 3
