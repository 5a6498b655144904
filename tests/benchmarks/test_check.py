"""The gate on two made-up revisions of torchqx whose only content is how slow they are."""

import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from benchmarks import check
from benchmarks.check import NEW, OLD, Row
from benchmarks.interleave import Timing
from benchmarks.kernels.every import CASES
from benchmarks.revision import FOLDERS, Source, UnknownRevisionError, extract
from benchmarks.verdict import judge
from benchmarks.worker import Built, Failed
from benchmarks.workloads import SMALL, Kernel
from tests.benchmarks.fake import Pause


def git(folder: Path, *arguments: str) -> None:
    who = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """main~1 is as fast as the working tree, main~2 twice as fast."""
    folder = tmp_path_factory.mktemp("repository")
    git(folder, "init", "--initial-branch=main")
    for slowness in (1.0, 2.0, 2.1):
        for package in FOLDERS.values():
            (folder / package).mkdir(exist_ok=True)
            (folder / package / "__init__.py").write_text("")
        (folder / "torchqx" / "__init__.py").write_text(f"SLOWNESS = {slowness}\n")
        git(folder, "add", ".")
        git(folder, "commit", "--message", f"{slowness}")
    (folder / "torchqx" / "__init__.py").write_text("SLOWNESS = 2.0\n")
    return folder


def command(repository: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(check, "REPOSITORY", repository)
    monkeypatch.setattr(check, "SMALL", [Pause(), Kernel("int8 linear no such case")])
    monkeypatch.setattr(check, "REVISION_ARM", "tests.benchmarks.fake:paused")
    app = typer.Typer()
    app.command()(check.main)
    result = CliRunner().invoke(app, [*arguments, "--rounds", "5", "--turn-seconds", "0", "--only", "pause"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_a_revision_that_is_slower_fails(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, output = command(repository, monkeypatch, "--base", "main~2")
    assert status == 1, output
    assert "once more: pause" in output
    assert "SLOWER" in output


def test_equal_revisions_pass_though_they_are_two_processes(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, output = command(repository, monkeypatch, "--base", "main~1", "--threshold", "0.2")
    assert status == 0, output
    assert "SLOWER" not in output


def test_an_unknown_revision_is_a_usage_error(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, output = command(repository, monkeypatch, "--base", "no-such-branch")
    assert status == 2
    assert "no-such-branch" in output
    with pytest.raises(UnknownRevisionError, match="no-such-branch"):
        extract("no-such-branch", repository, repository)


def timing(seconds: np.ndarray) -> Timing:
    return Timing("arm", Built(np.zeros(1), 1.0, 1.0), [[s] for s in seconds])


@pytest.mark.parametrize(("slower", "noise", "fails"), [
    (1.0, 0.0, False), (1.04, 0.001, False), (1.08, 0.01, True), (1.5, 0.2, True), (0.5, 0.0, False),
])
def test_what_counts_as_slower(slower: float, noise: float, fails: bool) -> None:
    random = np.random.default_rng(0)
    drift = np.linspace(1, 3, 25)  # of the machine, which both see
    old, new = (timing(drift * scale * (1 + noise * random.standard_normal(25))) for scale in (1.0, slower))
    verdict = judge(new, old)
    assert verdict.low <= verdict.ratio <= verdict.high
    assert verdict.is_slower(0.05) == fails


def test_noise_around_equal_is_not_slower_however_the_median_falls() -> None:
    ratios = np.array([0.5, 0.6, 1.2, 1.2, 1.2])
    verdict = judge(timing(ratios), timing(np.ones(5)))
    assert verdict.ratio == pytest.approx(1.2)
    assert not verdict.is_slower(0.05)


def test_only_the_new_revision_has_to_run() -> None:
    failed = Failed("no kernel")
    assert Row("w", None, {OLD: 1.0}, {NEW: failed}).is_worse(0.05)
    assert not Row("w", None, {NEW: 1.0}, {OLD: failed}).is_worse(0.05)
    assert not Row("w", None, {}, {OLD: failed, NEW: failed}).is_worse(0.05)
    assert Row("w", None, {OLD: 1.0}, {NEW: failed}).cells(0.05)[-1] == "FAILED"


def test_the_kernels_checked_exist() -> None:
    assert {workload.name for workload in SMALL if isinstance(workload, Kernel)} <= CASES.keys()


def test_every_package_comes_from_the_source(repository: Path) -> None:
    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert settings["tool"]["setuptools"]["package-dir"] == FOLDERS
    found = Source(repository).find_spec("torchqx.fx_passes", None)
    assert found.origin == str(repository / "fx_passes" / "__init__.py")
    assert found.submodule_search_locations == [str(repository / "fx_passes")]
    assert Source(repository).find_spec("torchqx.plan", None) is None
