"""Measuring, and what is kept of it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

from torchqx import machine_rates
from torchqx.cost_model import Rates
from torchqx.inductor_kernels.int8_linear.cpu import is_supported


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Small operands, few rounds, a cache of the test's own."""
    monkeypatch.setattr(machine_rates, "SIZE", 96)
    monkeypatch.setattr(machine_rates, "ROWS", (1, 5))
    monkeypatch.setattr(machine_rates, "ROUNDS", 2)
    monkeypatch.setattr(machine_rates, "cache_dir", lambda: str(tmp_path))
    machine_rates._rates.cache_clear()
    yield
    machine_rates._rates.cache_clear()


@pytest.mark.usefixtures("small")
def test_every_kernel_of_this_machine_is_timed() -> None:
    rates, undisturbed = machine_rates.measure()
    packed = {"packed"} if is_supported(torch.device("cpu")) else set()
    assert set(rates.matmul) == set(rates.call) == packed | {
        "integer", "group", "float32", "bfloat16", "float32 weight only", "bfloat16 weight only",
        "float32 weight only grouped", "bfloat16 weight only grouped"}
    assert all(len(times) == 2 and 0 < times[0] <= times[1] for times in rates.matmul.values())
    assert min(rates.call.values()) > 0 < rates.byte
    assert undisturbed
    assert machine_rates.decode(machine_rates.encode(rates)) == rates


@pytest.mark.usefixtures("small")
def test_no_weight_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where noise makes a large weight as fast as a small one, it takes what reading it takes."""
    monkeypatch.setattr(machine_rates, "_seconds", lambda call: 1e-3)
    rates, _ = machine_rates.measure()
    assert set(rates.matmul.values()) == {(rates.byte, rates.byte)}


@pytest.mark.usefixtures("small")
def test_calls_of_a_group_are_timed_as_many_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of several costs more than the others: alone, it would be taken for what each of them costs."""
    groups: set[int] = set()
    formula = machine_rates.int8_linear_general_aten

    def recorded(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor, *rest: object) -> torch.Tensor:
        groups.add(scales.shape[1])
        return formula(x, weight, scales, *rest)

    monkeypatch.setattr(machine_rates, "int8_linear_general_aten", recorded)
    machine_rates.measure()
    assert groups == {machine_rates.GROUPS}


@pytest.mark.usefixtures("small")
def test_measured_once_per_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    first = machine_rates.machine_rates()
    machine_rates._rates.cache_clear()
    measured: list[int] = []
    monkeypatch.setattr(machine_rates, "measure", lambda: (measured.append(1) or first, True))
    assert machine_rates.machine_rates() == first
    assert not measured, "another process finds the file"
    machine_rates._rates(torch.get_num_threads() + 1)
    assert measured == [1]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("setting", [
    pytest.param(lambda: default_dtype(torch.bfloat16), id="dtype"),
    pytest.param(lambda: torch.device("meta"), id="device"),
    pytest.param(lambda: torch.autocast("cpu", torch.bfloat16), id="autocast"),
])
def test_the_callers_settings_have_no_part_in_it(setting: Callable[[], AbstractContextManager[object]],
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[torch.Tensor] = []
    monkeypatch.setattr(machine_rates, "_seconds", lambda call: results.append(call()) or 1e-3)

    def timed() -> list[tuple[set[str], torch.dtype, torch.device]]:
        results.clear()
        rates, _ = machine_rates.measure()
        return [(set(rates.matmul), r.dtype, r.device) for r in results]

    expected, random = timed(), torch.get_rng_state()
    with setting():
        assert timed() == expected
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.usefixtures("small")
def test_what_a_busy_machine_took_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_rates, "FEWEST", 1)
    monkeypatch.setattr(machine_rates, "SECONDS", 0.0)
    machine_rates.machine_rates()
    assert not list(tmp_path.rglob("*.json"))
    monkeypatch.setattr(machine_rates, "SECONDS", 1e9)
    assert machine_rates.machine_rates() is machine_rates.machine_rates(), "one process measures once all the same"
    machine_rates._rates.cache_clear()
    machine_rates.machine_rates()
    assert len(list(tmp_path.rglob("*.json"))) == 1


@pytest.mark.usefixtures("small")
def test_threads_wait_for_one_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    rates, measured = machine_rates.measure(), []

    def measure() -> tuple[Rates, bool]:
        measured.append(1)
        time.sleep(0.05)
        return rates

    monkeypatch.setattr(machine_rates, "measure", measure)
    threads = [threading.Thread(target=machine_rates.machine_rates) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert measured == [1]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("change", ["processor", "version", "digest_of", "is_supported"])
def test_what_the_file_is_kept_for(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = machine_rates.measure()[0]
    monkeypatch.setattr(machine_rates, "measure", lambda: (rates, True))
    machine_rates.machine_rates()
    machine_rates._rates.cache_clear()
    monkeypatch.setattr(machine_rates, change, lambda *_: "another")
    machine_rates.machine_rates()
    assert len(list(tmp_path.rglob("*.json"))) == 2


def test_the_processor_has_a_name() -> None:
    assert len(machine_rates.processor()) > 3
