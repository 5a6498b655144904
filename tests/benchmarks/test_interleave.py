import json

import numpy as np
import pytest

from benchmarks import records
from benchmarks.arms import ARMS
from benchmarks.crew import DIED, Worker, crew
from benchmarks.interleave import Timing, interleave
from benchmarks.worker import Arm, Built, Failed
from benchmarks.workloads import Encoder, Workload
from tests.benchmarks.fake import Pause


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


def test_one_worker_runs_workload_after_workload_and_an_arm_that_cannot_be_built_is_reported():
    said: list[str] = []
    arms = [Arm("waits", "tests.benchmarks.fake:waits"), Arm("broken", "tests.benchmarks.fake:broken")]
    with crew(arms, threads=1) as workers:
        for milliseconds in (2.0, 5.0):
            timings, failed = interleave(Pause(milliseconds=milliseconds), workers, rounds=2, turn_seconds=0.0,
                                         say=said.append, build_together=True)
            (only,) = timings
            assert only.built.output.tolist() == [1.0, milliseconds]
            assert [len(turn) for turn in only.rounds] == [3, 3]
            assert 1e-3 * milliseconds <= only.median() < 1
            assert 50 < only.run_peak_mib < 20_000
            assert failed["broken"].reason == f"RuntimeError: no kernel for {milliseconds}"
    assert sum("broken failed" in line for line in said) == 2
    assert not any(worker._process.is_alive() for worker in workers)


def test_a_worker_that_died_is_reported_and_replaced():
    worker = Worker(Arm("broken", "tests.benchmarks.fake:broken"), threads=1)
    worker.order(Pause())
    worker._process.kill()
    assert worker.built() == DIED
    worker.order(Pause())
    assert isinstance(worker.built(), Failed)
    worker.close()


def test_workload_batches_all_differ():
    job = Workload("minilm", 3, 17).load()
    rows = [row for batch in [*job.calibration, job.inputs] for row in batch["input_ids"]]
    assert {len(row) for row in rows} == {17}
    assert len({tuple(row.tolist()) for row in rows}) == len(rows)


def test_an_encoder_has_the_size_asked_for():
    workload = Encoder(width=48, layers=3, batch=2, tokens=5)
    job = workload.load()
    assert workload.name == "bert-48w-3l-2x5"
    assert job.module(**job.inputs).shape == (2, 5, 48)
    assert len(job.module.model.encoder.layer) == 3


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
