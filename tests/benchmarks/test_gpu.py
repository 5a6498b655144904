"""The GPU benchmark rehearsed on the CPU: it runs whole, notices wrong results, and says what is absent."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks.gpu import case, check, linear, verify_linear
from benchmarks.gpu import timing as timing_module
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.case import OURS, Case
from benchmarks.gpu.limits import Limits
from benchmarks.gpu.norm import rms_norm_per_token
from benchmarks.gpu.place import Place
from benchmarks.gpu.timing import Timing, interleaved
from benchmarks.gpu.verify_rows import span_error

PLACE = Place(torch.device("cpu"), quick=True)


def command(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(main)
    result = CliRunner().invoke(app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def rehearse(folder: Path, *arguments: str) -> tuple[int, str, dict]:
    status, output = command("--device", "cpu", "--quick", "--records", str(folder), *arguments)
    (record,) = folder.glob("gpu-*.json")
    assert record.with_suffix(".md").read_text().startswith("# torchqx on ")
    return status, output, json.loads(record.read_text())


def test_without_a_device_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, output = command("--records", str(tmp_path))
    assert status == 2
    assert "no CUDA device" in output
    assert not list(tmp_path.iterdir())


def test_everything_is_verified(tmp_path: Path) -> None:
    status, output, record = rehearse(tmp_path, "--only", "verify")
    assert status == 0, output
    assert all(v["passed"] for v in record["verified"])
    names = "; ".join(v["name"] for v in record["verified"])
    for word in ("int8_matmul", "gelu_tanh", "requantize", "experts", "groups", "layer norm", "RMSNorm", "hadamard",
                 "transposed", "selective scan", "chunk scan", "scan step", "encoder layer", "decoder layer"):
        assert word in names
    assert "results" not in record


def test_everything_is_measured(tmp_path: Path) -> None:
    status, output, record = rehearse(tmp_path, "--only", "norm", "--only", "blocks", "--only", "linear")
    assert status == 0, output
    assert record["limits"].keys() == {"copy", "bf16", "int8"}
    assert {"triton", "torch", "transformers"} <= record["machine"]["versions"].keys()
    by_name = {r["what"]: r for r in record["results"]}
    for name in ("encoder layer (BERT)", "decoder layer (Llama)", "quantize per token, int8 linear"):
        assert by_name[name]["round_us"].keys() == {OURS, "bf16", "torchao"}
    assert by_name["int8 linear: bias"]["times_faster_than"]["bf16"] > 0
    assert by_name["layer norm, quantize"]["bytes"] == 3 * 5 * 64
    assert not record["not_measured"]
    assert "of limit" in output


def test_scans_are_measured(tmp_path: Path) -> None:
    status, output, record = rehearse(tmp_path, "--only", "scan")
    assert status == 0, output
    by_name = {r["what"]: r for r in record["results"]}
    assert by_name.keys() == {"selective scan", "chunk scan", "scan step"}
    assert all(r["round_us"].keys() == {OURS, "bf16"} for r in by_name.values())
    rows, state = 2 * 3 * 5, 2 * 3 * 5 * 16
    assert by_name["scan step"]["bytes"] == 2 * rows + 2 * 3 + 3 + 2 * 2 * 16 + 2 * 4 * state


def test_a_wrong_kernel_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = verify_linear.int8_linear_aten

    def wrong(x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor, sums: torch.Tensor, x_scale: torch.Tensor,
              zero_point: torch.Tensor, *rest: object) -> torch.Tensor:
        return right(x, q, scale, sums, x_scale, zero_point + 1, *rest)

    monkeypatch.setattr(verify_linear, "int8_linear_aten", wrong)
    verdicts = [check.judge(c) for c in verify_linear.checks(PLACE) if c.name.startswith("int8 linear 33 x 100")]
    assert not any(v.passed for v in verdicts)
    assert "FAILED" in verdicts[0].row()[-1]


def test_an_exception_and_nan_fail() -> None:
    def broken() -> float:
        raise RuntimeError("no such kernel\nand more")

    assert check.judge(check.Check("a", 1.0, broken)).row()[-1] == "FAILED RuntimeError: no such kernel"
    assert not check.judge(check.Check("b", 1.0, lambda: float("nan"))).passed


def test_a_wrong_scale_or_code_is_noticed() -> None:
    x = torch.randn(4, 100) + 1
    q, scale, zero_point = rms_norm_per_token(x, torch.ones(100))
    exact = x.double() * torch.rsqrt(x.double().pow(2).mean(-1, keepdim=True) + 1e-6)
    assert span_error(q, scale, zero_point, exact) <= check.HALF
    off = q.clone()
    off[3, 99] += 1 if off[3, 99] < 0 else -1
    assert span_error(off, scale, zero_point, exact) > check.HALF
    assert span_error(q, scale, zero_point + 1, exact) > check.HALF
    with pytest.raises(ValueError, match="scales"):
        span_error(q, scale * 1.01, zero_point, exact)


def outcome_of(**arms: object) -> case.Outcome:
    def build(result: object):
        def made() -> list:
            if isinstance(result, Exception):
                raise result
            return [lambda: result]
        return made

    return case.run(Case("what", "size", lambda _: {name: build(a) for name, a in arms.items()}, moved=1e3, int8=1e3),
                    PLACE)


def test_an_absent_arm_is_told_and_ours_must_run() -> None:
    fine = outcome_of(torchqx=1, bf16=2, torchao=ImportError("no module"))
    assert not fine.broken
    row = dict(zip(case.HEADER, fine.row(Limits(1e9, 1e9, 1e9)), strict=True))
    assert row["x torchao"] == "absent"
    assert float(row["x bf16"]) > 0
    broken = outcome_of(torchqx=RuntimeError("no kernel"), bf16=2)
    assert "no kernel" in broken.broken
    assert broken.row(Limits(1e9, 1e9, 1e9))[2] == "failed"


def test_limits_add_matmuls_and_overlap_memory() -> None:
    limits = Limits(copy=10.0, bf16=2.0, int8=4.0)
    assert limits.seconds(moved=10.0) == 1.0
    assert limits.seconds(moved=10.0, int8=8.0, bf16=2.0) == 3.0


def test_ratios_are_taken_round_by_round() -> None:
    slow, fast = Timing((2.0, 8.0, 2.0)), Timing((1.0, 4.0, 1.0))
    assert fast.times_faster_than(slow) == 2.0
    assert slow.median() == 2.0


def test_arms_take_turns_and_times_are_per_call(monkeypatch: pytest.MonkeyPatch) -> None:
    order, now = [], [0.0]

    def work(name: str, seconds: float):
        def call() -> None:
            order.append(name)
            now[0] += seconds
        return call

    monkeypatch.setattr(timing_module.time, "perf_counter", lambda: now[0])
    timings, how = interleaved(PLACE, {"a": [work("a", 1.0)] * 2, "b": [work("b", 3.0)] * 2})
    assert how == "clock"
    assert timings["a"].rounds == (1.0, 1.0)
    assert timings["b"].rounds == (3.0, 3.0)
    assert order[-8:] == ["a", "a", "b", "b"] * 2


class FakeCuda:
    """As much of ``torch.cuda`` as timing asks of it, by a clock of its own."""

    def __init__(self) -> None:
        self.now, self.mode, self.captured, self.capturing = 0.0, "default", 0, False

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = fake.now

            def synchronize(self) -> None:
                assert fake.mode == "default"

            def elapsed_time(self, end: "Event") -> float:
                return (end.at - self.at) * 1e3

        class CUDAGraph:
            def replay(self) -> None:
                assert not fake.capturing
                fake.now += self.seconds

        @contextlib.contextmanager
        def graph(into: CUDAGraph) -> Iterator[None]:
            started, fake.capturing = fake.now, True
            yield
            into.seconds, fake.now = fake.now - started, started
            fake.captured, fake.capturing = fake.captured + 1, False

        for name, value in {"Event": Event, "CUDAGraph": CUDAGraph, "graph": graph,
                            "set_sync_debug_mode": lambda mode: setattr(fake, "mode", mode)}.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def work(self, seconds: float, *, waits: bool = False) -> Callable[[], None]:
        def call() -> None:
            if waits and self.mode == "error":
                raise RuntimeError("called a synchronizing CUDA operation")
            assert not (waits and self.capturing)
            self.now += seconds
        return call


@pytest.mark.parametrize("waits", [False, True])
def test_on_a_gpu_arms_are_captured_unless_one_waits(monkeypatch: pytest.MonkeyPatch, waits: bool) -> None:
    cuda = FakeCuda()
    cuda.install(monkeypatch)
    place = Place(torch.device("cuda", 0), quick=False)
    timings, how = interleaved(place, {"a": [cuda.work(1e-5)] * 3, "b": [cuda.work(3e-5, waits=waits)] * 2})
    assert how == ("calls" if waits else "graphs")
    assert cuda.captured == (0 if waits else 2)
    assert len(timings["a"].rounds) == timing_module.ROUNDS
    assert timings["a"].median() == pytest.approx(1e-5)
    assert timings["a"].times_faster_than(timings["b"]) == pytest.approx(3.0)


def test_operands_go_round_beyond_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(L2_cache_size=50_000_000))
    place = Place(torch.device("cuda", 0), quick=False)
    assert [place.sets(size) for size in (1_000, 30_000_000, 500_000_000)] == [64, 7, 1]


def test_when_time_is_up_the_rest_is_named(tmp_path: Path) -> None:
    status, output, record = rehearse(tmp_path, "--only", "linear", "--seconds", "0")
    assert status == 0
    assert len(record["not_measured"]) == len(linear.cases(quick=True))
    assert "time was up" in output


def test_sizes_span_what_is_promised() -> None:
    plain = {c.size for c in linear.cases(quick=False) if c.what == "int8 linear: bias"}
    assert {f"{m} x 4096 x 11008" for m in (1, 16, 64, 128, 512, 1024, 2048, 4096, 8192)} <= plain
    assert len(plain) == 45
