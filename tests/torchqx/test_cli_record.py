"""Benches kept as files and compared: ratios to the float arms of the same run, never times."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner, Result

from torchqx import cli
from torchqx.cli_bench import BASE, FLOAT_ARMS, OURS, Timing, bench
from torchqx.cli_record import Comparison, Record
from torchqx.errors import ConfigError

SINGLE, HALF = FLOAT_ARMS


def timing(arm: str, *rounds: float) -> Timing:
    return Timing(arm, compile_seconds=1.0, seconds=sorted(rounds)[len(rounds) // 2], weight_bytes=100,
                  round_seconds=list(rounds))


def timings(ours: float, machine: float = 1.0, **others: float) -> list[Timing]:
    """A run whose second round was three times slower for all arms."""
    seconds = {SINGLE: 8.0, HALF: 4.0, OURS: ours, **others}
    return [timing(arm, *(machine * noise * s for noise in (1.0, 3.0, 1.0))) for arm, s in seconds.items()]


@pytest.fixture
def bench_of(monkeypatch: pytest.MonkeyPatch):
    """``torchqx bench`` with given figures in place of a model and a clock."""
    def run(figures: list[Timing], *arguments: object) -> Result:
        bases: list[object] = []
        monkeypatch.setattr(cli, "load_quantized", lambda directory: SimpleNamespace(name=directory))
        monkeypatch.setattr(cli, "bench", lambda *_, base, **__: bases.append(base) or figures)
        result = CliRunner().invoke(cli.app, ["bench", "model", *map(str, arguments), "--threads", "1"])
        result.bases = bases
        return result

    return run


def test_against_a_record_of_a_machine_that_was_twice_as_slow(bench_of, tmp_path: Path) -> None:
    file = tmp_path / "base.json"
    assert bench_of(timings(ours=2.0, machine=2.0), "--output", file).exit_code == 0
    result = bench_of(timings(ours=1.6), "--compare", file, "--json")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert result.bases == [None]
    assert shown["compared"]["speeds"][HALF] == pytest.approx({"base": 2.0, "now": 2.5, "ratio": 1.25})
    assert shown["compared"]["speeds"][SINGLE] == pytest.approx({"base": 4.0, "now": 5.0, "ratio": 1.25})
    assert {"arms", "batch", "versions", "cores", "instructions"} <= shown.keys()
    table = bench_of(timings(ours=1.6), "--compare", file).stdout
    assert "1.250" in table
    assert "base.json" in table


def test_against_a_directory_in_the_same_run(bench_of, tmp_path: Path) -> None:
    result = bench_of(timings(ours=1.6, base=2.0), "--compare", tmp_path, "--json")
    assert result.exit_code == 0, result.output
    assert [base.name for base in result.bases] == [str(tmp_path)]
    speeds = json.loads(result.stdout)["compared"]["speeds"]
    assert speeds[BASE] == pytest.approx({"base": 1.0, "now": 1.25, "ratio": 1.25})
    assert speeds[HALF] == pytest.approx({"base": 2.0, "now": 2.5, "ratio": 1.25})


@pytest.mark.parametrize(("option", "value", "words"), [
    ("--batch", 3, "batch 1, not 3"), ("--length", 9, "length 128, not 9"), ("--threads", 2, "threads 1, not 2"),
])
def test_a_record_of_other_sizes_is_refused_before_anything_is_timed(bench_of, tmp_path: Path, option: str, value: int,
                                                                     words: str) -> None:
    file = tmp_path / "base.json"
    bench_of(timings(2.0), "--output", file)
    result = CliRunner().invoke(cli.app, ["bench", "model", "--threads", "1", "--compare", str(file), option,
                                          str(value)])
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Remedy" in result.stderr


def test_a_record_that_could_not_be_written_is_refused_before_anything_is_timed(bench_of, tmp_path: Path) -> None:
    result = bench_of(timings(2.0), "--output", tmp_path / "none" / "base.json")
    assert result.exit_code == 2
    assert "its directory does not exist" in result.stderr
    assert result.bases == []


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"arms": []}', '{"arms": [{"arm": "torchqx"}]}', None])
def test_what_is_no_record_is_refused(content: str | None, tmp_path: Path) -> None:
    file = tmp_path / "base.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=r"base\.json.*no record"):
        Record.read(file)


def test_a_record_reads_as_it_was_written(tmp_path: Path) -> None:
    record = Record.of("BertModel", 2, 9, 1, timings(2.0))
    record.write(tmp_path / "a.json")
    assert Record.read(tmp_path / "a.json") == record
    assert Comparison.with_record(record, record, "itself").speeds[HALF] == (2.0, 2.0)


def test_a_base_of_another_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="base is a str, not a int"):
        bench(1, 1, 1, base="model")
