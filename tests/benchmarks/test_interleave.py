import json

import numpy as np
import pytest

from benchmarks import records
from benchmarks.arms import ARMS
from benchmarks.interleave import Timing, interleave
from benchmarks.worker import Built
from benchmarks.workloads import WORKLOADS, Workload


def timing(arm: str, rounds: list[list[float]], output: list[float]) -> Timing:
    return Timing(arm, Built(np.array(output), build_seconds=1.0, build_peak_mib=10.0), rounds)


def test_ratio_is_taken_round_by_round():
    # The machine is four times slower in the second round; the arms' ratio is 2 in each.
    slow = timing("slow", [[2.0, 2.0, 9.0], [8.0, 8.0, 8.0], [2.0, 2.0, 2.0]], [1.0])
    fast = timing("fast", [[1.0, 1.0, 1.0], [4.0, 4.0, 1.0], [1.0, 1.0, 1.0]], [1.0])
    assert fast.times_faster_than(slow) == pytest.approx(2.0)
    assert slow.times_faster_than(fast) == pytest.approx(0.5)


def test_error_is_relative_to_the_reference():
    exact = timing("exact", [], [3.0, 4.0])
    assert timing("off", [], [3.0, 4.5]).relative_error(exact) == pytest.approx(0.1)
    assert exact.relative_error(exact) == 0


def test_an_arm_that_cannot_be_built_is_reported_and_the_others_go_on(monkeypatch):
    said: list[str] = []
    timings, failed = interleave(
        WORKLOADS["minilm-1x128"], ["no-such-arm"], threads=1, rounds=1, turn_seconds=0.0, cold=True, say=said.append
    )
    assert timings == []
    assert "KeyError" in failed["no-such-arm"].reason
    assert "no-such-arm failed" in said[0]


def test_fp32_runs_in_a_worker_and_reports_time_and_memory():
    timings, failed = interleave(
        Workload("minilm", 1, 9), ["fp32"], threads=1, rounds=2, turn_seconds=0.0, cold=False, say=lambda _: None
    )
    assert failed == {}
    (only,) = timings
    assert only.built.output.shape == (1, 9, 384)
    assert [len(turn) for turn in only.rounds] == [3, 3]
    assert 0 < only.median() < 10
    assert 50 < only.run_peak_mib < 20_000


def test_workload_batches_all_differ():
    job = Workload("minilm", 3, 17).load()
    rows = [row for batch in [*job.calibration, job.inputs] for row in batch["input_ids"]]
    assert {len(row) for row in rows} == {17}
    assert len({tuple(row.tolist()) for row in rows}) == len(rows)


def test_every_arm_names_a_module_and_a_function():
    assert all(target.count(":") == 1 and target.startswith("benchmarks.arms.") for target in ARMS.values())


def test_report_writes_markdown_and_json(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(records, "RECORDS", tmp_path)
    path = records.report("name", "Title", ("what", "rate"), [("copy", "10")], {"threads": 3})
    record = json.loads(path.read_text())
    assert record["threads"] == 3
    assert set(record["machine"]) >= {"cpu", "versions", "date"}
    assert "| what | rate |\n| --- | ---: |\n| copy | 10 |\n" in (tmp_path / "name.md").read_text()
    assert "copy" in capsys.readouterr().out
