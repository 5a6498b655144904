"""The kernel table rehearsed: its arms agree, and a run of one row leaves the record that the page reads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.kernels import few_rows, gated, int8_linear, sequences
from benchmarks.kernels.case import OURS
from benchmarks.kernels.every import CASES
from benchmarks.limits import INT8
from benchmarks.performance import kernel_sheet, matmul_sheet
from benchmarks.turns import Turn

REPOSITORY = Path(__file__).resolve().parents[2]


@torch.inference_mode()
def test_arms_of_the_int8_linear_agree() -> None:
    arms = int8_linear.arms(5, 100, 63)
    torch.testing.assert_close(arms[OURS](), arms["qlinear"](), rtol=1e-4, atol=1e-4)
    ours, theirs = arms["torchqx gelu u8"](), arms["qlinear gelu u8"]()
    assert (ours.int() - theirs.int()).abs().max() <= 1
    assert arms["bf16"]().shape == arms[OURS]().shape == (5, 63)


@torch.inference_mode()
def test_arms_of_the_gated_linear_agree() -> None:
    arms = gated.arms(5, 100, 64)
    torch.testing.assert_close(arms[OURS](), arms["wide, product"](), rtol=0.02, atol=0.02)
    assert (arms["torchqx u8"]().int() - arms["wide, product u8"]().int()).abs().max() <= 1


@torch.inference_mode()
@pytest.mark.parametrize("heads", [3, 1])
def test_arms_of_attention_agree(heads: int) -> None:
    arms = sequences.attention(1, 3, heads, 33, 32)
    exact = arms["torch fp32"]()
    low = (arms["torch bf16"]().float() - exact).norm()
    assert (arms[OURS]().float() - exact).norm() <= 1.5 * low


@torch.inference_mode()
def test_arms_of_few_rows_read_the_same_weights_in_turn() -> None:
    arms = few_rows.arms(3, 1000, 20011, torch.float32)
    ours, theirs = ([arms[name]() for _ in range(3)] for name in (OURS, "torch"))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
    assert (ours[0] - ours[1]).abs().max() > 1
    assert torch.equal(ours[0], ours[2])  # of the two weights that are larger than the caches


def test_a_turn_counts_its_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = [0.0], []

    def call() -> None:
        now[0] += 0.5
        calls.append(1)

    monkeypatch.setattr("benchmarks.turns.time.perf_counter", lambda: now[0])
    turn = Turn(call, turn_seconds=1.6)
    assert turn.count == 4
    turn()
    assert turn.seconds == [0.5]
    assert len(calls) == 2 + 1 + 4


def test_one_row_runs_and_is_recorded(tmp_path: Path) -> None:
    rows = [f"benchmarks/test_kernels.py::test_kernel[{name}]"
            for name in ("int8 linear 128 x 384 x 384", "attention MiniLM 1 x 12 x 12 x 128 x 32")]
    done = subprocess.run([sys.executable, "-m", "pytest", *rows, "--benchmark-enable", "--rounds=1",
                           "--turn-seconds=0", "--benchmark-json", str(tmp_path / "kernels.json")],
                          cwd=REPOSITORY, capture_output=True, text=True,
                          env={k: v for k, v in os.environ.items() if "XDIST" not in k})  # a worker times nothing
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "kernels.json").read_text())
    assert record["threads"] == 1
    assert record["matmul_gmacs"][INT8] > 0
    assert {"cpu", "versions", "date"} <= record["machine"].keys()
    assert "machine_info" not in record
    assert "commit_info" not in record
    (row,) = matmul_sheet(record).rows
    assert row[0] == "128 x 384 x 384"
    assert all(0 < float(share.rstrip("%")) < 1000 for share in row[1:])
    (other,) = kernel_sheet(record).rows
    assert other[0].startswith("attention MiniLM")


def test_every_case_has_a_name_of_its_own() -> None:
    assert len(CASES) > 100
    assert {"int8 linear", "attention", "scan", "hadamard bfloat16", "layer norm, quantize"} <= {
        case.kernel for case in CASES.values()}
