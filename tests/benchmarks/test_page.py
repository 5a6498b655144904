"""The performance page from records made up here: newest runs, losses, shares of the limit, figures."""

import json
from pathlib import Path
from typing import Any

from benchmarks.arms import ARMS as KNOWN_ARMS
from benchmarks.growth import points
from benchmarks.limits import BF16, INT8
from benchmarks.page import page
from benchmarks.performance import ARMS, limit_sheet, losses, runs
from benchmarks.plots import series

MACHINE = {"cpu": "A CPU", "cores": 2, "versions": {"torch": "2.13"}, "date": "2026-01-01 00:00 UTC"}
RATES = {"matmul_gmacs": {INT8: 400.0, BF16: 200.0}}


def arm(*ms: float) -> dict[str, Any]:
    return {"median_ms": sorted(ms)[len(ms) // 2], "round_ms": [[m] for m in ms], "build_seconds": 3.0,
            "build_peak_mib": 100.0, "run_peak_mib": 90.0}


def speed(day: int, workload: str, work: dict[str, int] | None = None, **arms: dict[str, Any]) -> dict[str, Any]:
    result = {"workload": workload, "arms": {name.replace("_", "-"): times for name, times in arms.items()}}
    return {"machine": {**MACHINE, "date": f"2026-01-{day:02} 00:00 UTC"}, "threads": 2,
            "results": [result | ({"multiply_adds": work} if work else {})]}


def test_the_newest_run_of_a_workload_counts() -> None:
    found = runs([speed(3, "bert", torchqx_bf16=arm(3.0)), speed(9, "bert", torchqx_bf16=arm(2.0), bf16=arm(4.0)),
                  speed(5, "bert", torchqx_bf16=arm(5.0)), speed(10, "bert", bf16=arm(1.0))])
    assert [run.ms(run.ours) for run in found] == [2.0]


def test_a_peer_is_ahead_by_the_median_of_rounds_though_its_median_time_is_longer() -> None:
    (run,) = runs([speed(1, "bert", torchqx_bf16=arm(1.0, 5.0, 6.0), openvino_int8=arm(0.8, 5.5, 5.4))])
    assert list(losses([run])) == ["bert, 2 threads: OpenVINO int8 is 1.11x as fast as torchqx."]
    (run,) = runs([speed(1, "bert", torchqx_bf16=arm(1.0, 5.0, 5.4), openvino_int8=arm(1.1, 4.9, 6.0))])
    assert list(losses([run])) == []


def test_an_encoder_against_the_limit() -> None:
    work = {"weighted": 4 * 10**9, "attention": 10**9}  # 10 ms and 5 ms at these rates
    found = runs([speed(1, "bert-1x128", work, torchqx_bf16=arm(20.0), bf16=arm(50.0)), speed(1, "gpt2", work,
                                                                                             torchqx_bf16=arm(20.0))])
    (row,) = limit_sheet(found, {2: RATES}).rows
    assert row == ("bert-1x128", "2", "15.0", "20.0", "75%", "30%")


def growth() -> dict[str, Any]:
    results = [{"layers": e.layers, "batch": e.batch, "tokens": e.tokens, "times_faster": 2.0,
                "median_ms": {"bf16": 2.0 * e.tokens, "torchqx-bf16": 1.0 * e.tokens}}
               for e in points(384, [128, 512], [1, 4, 8], [2, 6])]
    return {"machine": MACHINE, "width": 384, "threads": 2, "results": results}


def test_each_axis_grows_alone() -> None:
    found = growth()
    assert [size["tokens"] for size in series(found, "tokens")] == [128, 512]
    assert [size["batch"] for size in series(found, "batch")] == [1, 4, 8]
    assert [size["layers"] for size in series(found, "layers")] == [2, 6]


def test_the_whole_page(tmp_path: Path) -> None:
    times = {"torchqx": 100.0, "torchqx gelu u8": 120.0, "torchqx per token": 110.0, "_int_mm": 90.0, "qlinear": 150.0,
             "qlinear gelu u8": 200.0, "bf16": 300.0}
    kernels = {"machine": MACHINE, "threads": 1, **RATES, "benchmarks": [
        {"extra_info": {"kernel": "int8 linear", "size": "128 x 1000 x 250", "int8_multiply_adds": 32 * 10**6,
                        "median_us": times}},
        {"extra_info": {"kernel": "hadamard float32", "size": "16 x 576", "int8_multiply_adds": 0,
                        "median_us": {"torchqx": 10.0, "copy": 5.0}}}]}
    limits = {"machine": MACHINE, "threads": 2, **RATES}
    bert = speed(1, "bert-1x128", {"weighted": 4 * 10**9, "attention": 0}, torchqx_bf16=arm(20.0), bf16=arm(10.0))
    made = {"kernels-1t": kernels, "limits-2t": limits, "speed-2t": bert, "growth-384-2t": growth()}
    for name, record in made.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    text = page(tmp_path, tmp_path)
    assert "| 128 x 1000 x 250 | 80% | 67% |" in text
    assert "| hadamard float32 16 x 576 | 10.0 | copy 0.50 |" in text
    assert "| bert-1x128 | 2 | **10.0** | 20.0 | 0.50 |" in text
    assert "compiled bf16 is 2.00x as fast as torchqx" in text
    assert "(growth-384-2t.svg)" in text
    drawn = (tmp_path / "growth-384-2t.svg").read_bytes()
    assert b"tokens in a row" in drawn
    page(tmp_path, tmp_path)
    assert (tmp_path / "growth-384-2t.svg").read_bytes() == drawn


def test_what_was_not_recorded_is_left_out(tmp_path: Path) -> None:
    assert "##" not in page(tmp_path, tmp_path)
    (tmp_path / "speed.json").write_text(json.dumps(speed(1, "bert", torchqx_bf16=arm(1.0))))
    text = page(tmp_path, tmp_path)
    assert "No peer is ahead" in text
    assert "limit" not in text


def test_every_arm_has_a_name_on_the_page() -> None:
    assert set(KNOWN_ARMS) <= ARMS.keys()
