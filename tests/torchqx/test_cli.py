"""The command line on tiny random models: what it writes, what it prints, and its one-line errors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner, Result

from tests.architectures import ARCHITECTURES
from torchqx import QuantizedWeight, cli, cli_bench
from torchqx.cli_data import Sampling, read_texts, tensor_batches, text_batches
from torchqx.cli_models import Source
from torchqx.errors import CheckpointError, ConfigError

WORDS = [f"w{i}" for i in range(100)]
FAST = ["--samples", "6", "--length", "16", "--batch-size", "4", "--set", "grid_steps=2"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def refused(result: Result, error: str, *words: str) -> None:
    """One line on stderr that names ``error`` and says ``words``; exit code 2."""
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if error in line]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert "Remedy" in lines[0]
    for word in words:
        assert word in lines[0]


def save_model(name: str, folder: Path) -> Path:
    ARCHITECTURES[name].build().save_pretrained(folder)
    if name != "vit":
        vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", *WORDS])}
        tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = Whitespace()
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")
        fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("vit", tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "lines.txt"
    path.write_text("\n\n".join(" ".join(WORDS[i:i + 5 + i]) for i in range(20)) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def quantized(bert: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("quantized") / "out"
    result = run("quantize", bert, "--data", text, "--output", output, *FAST)
    assert result.exit_code == 0, result.output
    assert "quantized" in result.stdout
    return output


def test_quantize_writes_model_tokenizer_and_report(quantized: Path) -> None:
    written = {p.name for p in quantized.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "torchqx-plan.json"} <= written
    report = json.loads((quantized / "torchqx-plan.json").read_text())
    assert report["model"] == "BertModel"
    assert report["summary"]["sites"]["linear"]["quantized"] >= 4
    assert report["summary"]["bytes_after"] < report["summary"]["bytes_before"] / 2


def test_explain_of_the_saved_model_is_the_report_that_was_saved(quantized: Path) -> None:
    result = run("explain", quantized, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads((quantized / "torchqx-plan.json").read_text())
    table = run("explain", quantized).stdout
    assert "BertModel: sites" in table
    assert table.count("quantized") >= 8


def test_bench_shows_three_arms_and_the_base(quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_bench, "ROUNDS", 1)
    monkeypatch.setattr(cli_bench, "TURN_SECONDS", 0.0)
    before = torch.get_num_threads()
    result = run("bench", quantized, "--batch", 2, "--length", 9, "--threads", 1, "--json",
                 "--compare", quantized, "--output", tmp_path / "record.json")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert (shown["batch"], shown["length"], shown["threads"]) == (2, 9, 1)
    single, half, ours, base = shown["arms"]
    assert (ours["arm"], base["arm"]) == ("torchqx", "base")
    assert shown["compared"]["speeds"]["base"]["ratio"] > 0
    assert json.loads((tmp_path / "record.json").read_text())["arms"] == shown["arms"]
    assert half["weight_bytes"] < 0.6 * single["weight_bytes"]
    assert ours["weight_bytes"] < 0.7 * single["weight_bytes"]
    assert all(arm["seconds"] < arm["compile_seconds"] for arm in shown["arms"])
    assert torch.get_num_threads() == before


def test_a_decoder_calibrates_on_packed_windows(llama: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(json.dumps({"id": str(i), "text": " ".join(WORDS[i:i + 9])}) for i in range(40)))
    source = Source.find(str(llama))
    model, tokenizer = source.float_model(), source.tokenizer()
    batches = text_batches(data, None, model, lambda: tokenizer, Sampling(samples=5, length=16, batch_size=2))
    assert [tuple(b["input_ids"].shape) for b in batches] == [(2, 16), (2, 16), (1, 16)]
    assert batches[0]["input_ids"][0].tolist() == tokenizer(" ".join([*WORDS[:9], *WORDS[1:8]]))["input_ids"]
    short = text_batches(data, None, model, lambda: tokenizer, Sampling(samples=5, length=10_000, batch_size=2))
    assert short[0]["input_ids"].shape == (2, 64)  # the most that the model takes

    output = tmp_path / "out"
    result = run("quantize", llama, "--data", data, "--output", output, "--recipe", "minmax", "--dtype", "bfloat16",
                 *FAST[:6], "--set", "activation=token")
    assert result.exit_code == 0, result.output
    report = json.loads((output / "torchqx-plan.json").read_text())
    assert {s["activation"] for s in report["sites"] if s["status"] == "quantized"} == {"u8 affine per token, dynamic"}
    assert json.loads((output / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_vision_model_calibrates_on_tensors(vit: Path, tmp_path: Path) -> None:
    data, output = tmp_path / "images.npz", tmp_path / "out"
    np.savez(data, pixel_values=np.random.default_rng(0).normal(size=(7, 3, 32, 32)))
    batches = tensor_batches(data, Source.find(str(vit)).float_model(), Sampling(samples=6, batch_size=4))
    assert [tuple(b["pixel_values"].shape) for b in batches] == [(4, 3, 32, 32), (2, 3, 32, 32)]
    assert batches[0]["pixel_values"].dtype == torch.float32
    result = run("quantize", vit, "--data", data, "--output", output, *FAST)
    assert result.exit_code == 0, result.output
    assert json.loads((output / "torchqx-plan.json").read_text())["model"] == "ViTForImageClassification"


@pytest.mark.parametrize(("name", "content"), [
    ("a.txt", "one\n\n two \n"),
    ("a.csv", 'text,n\none,1\n"two",2\n'),
    ("a.tsv", "n\ttext\n1\tone\n2\ttwo\n"),
    ("a.json", '["one", "", "two"]'),
    ("a.jsonl", '{"only": "one", "n": 1}\n\n{"only": "two", "n": 2}\n'),
])
def test_every_text_format_gives_the_same_texts(name: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert list(read_texts(path)) == ["one", "two"]


def test_a_column_has_to_be_there_and_unambiguous(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("first,second\none,two\n")
    assert list(read_texts(path, "second")) == ["two"]
    with pytest.raises(ConfigError, match="first, second"):
        list(read_texts(path))
    with pytest.raises(ConfigError, match="'third'"):
        list(read_texts(path, "third"))


def test_sources(tmp_path: Path) -> None:
    assert Source.find("someone/some-model") == Source("someone/some-model")
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert Source.find(str(tmp_path)) == Source.find(str(tmp_path / "a.gguf")) == Source(str(tmp_path), "a.gguf")
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"a\.gguf, b\.gguf"):
        Source.find(str(tmp_path))
    with pytest.raises(CheckpointError, match="cannot be read"):
        Source.find(str(tmp_path / "b.gguf")).float_model()


def test_dequantized_copy_is_float_and_leaves_the_model(quantized: Path) -> None:
    model = Source.find(str(quantized)).quantized_model()
    copy = cli_bench.dequantized(model)
    assert not any(isinstance(p, QuantizedWeight) for p in copy.parameters())
    assert any(isinstance(p, QuantizedWeight) for p in model.parameters())
    assert cli_bench.weight_bytes(copy) == sum(p.numel() * 4 for p in copy.parameters()) + sum(
        b.numel() * b.element_size() for b in copy.buffers())


def test_bad_data_is_one_line(bert: Path, vit: Path, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    refused(run("quantize", bert, "--data", tmp_path / "none.txt", "--output", output), "NoCalibrationData", "none.txt")
    empty = tmp_path / "empty.txt"
    empty.write_text("\n  \n")
    refused(run("quantize", bert, "--data", empty, "--output", output), "NoCalibrationData", "empty.txt")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "one"\n')
    refused(run("quantize", bert, "--data", broken, "--output", output), "CalibrationError", "broken.jsonl")
    images = torch.randn(4, 3, 32, 32)
    images[2, 0, 5, 5] = torch.nan
    torch.save({"pixel_values": images}, tmp_path / "nan.pt")
    refused(run("quantize", vit, "--data", tmp_path / "nan.pt", "--output", output), "NonFinite", "pixel_values")
    torch.save({"pixels": images}, tmp_path / "name.pt")
    refused(run("quantize", vit, "--data", tmp_path / "name.pt", "--output", output), "Config", "pixel_values")
    torch.save({"pixel_values": images, "labels": images[:2]}, tmp_path / "count.pt")
    refused(run("quantize", vit, "--data", tmp_path / "count.pt", "--output", output), "ShapeError", "4", "2")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "nan.pt").read_bytes()[:200])
    refused(run("quantize", vit, "--data", tmp_path / "cut.pt", "--output", output), "CalibrationError", "cut.pt")
    refused(run("quantize", vit, "--data", text, "--output", output), "Unsupported", "ViTForImageClassification")
    assert not output.exists()


@pytest.mark.parametrize(("options", "error", "words"), [
    (["--recipe", "magic"], "ConfigError", ["osplus", "minmax", "hadamard"]),
    (["--set", "colour=red"], "ConfigError", ["colour", "grid_steps", "weight_bits"]),
    (["--set", "weight_bits=9"], "ConfigError", ["9 bits"]),
    (["--set", "weight_bits=many"], "ConfigError", ["many"]),
    (["--set", "weight_bits"], "ConfigError", ["field=value"]),
    (["--dtype", "float12"], "ConfigError", ["bfloat16"]),
    (["--samples", "0"], "ConfigError", ["--samples"]),
    (["--output", __file__], "ConfigError", ["is a file"]),
])
def test_bad_options_are_one_line(options: list[str], error: str, words: list[str], bert: Path, text: Path,
                                  tmp_path: Path) -> None:
    refused(run("quantize", bert, "--data", text, "--output", tmp_path / "out", *options), error, *words)


def test_bad_models_are_one_line(bert: Path, quantized: Path, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    refused(run("quantize", quantized, "--data", text, "--output", output), "AlreadyQuantized", str(quantized))
    refused(run("quantize", bert, "--data", text, "--output", bert), "ConfigError", "overwrite")
    refused(run("explain", tmp_path / "nowhere"), "CheckpointError", "nowhere")
    refused(run("explain", tmp_path), "CheckpointError", "config.json")
    refused(run("explain", bert), "NotPrepared", "BertModel")
    refused(run("bench", bert), "NotPrepared", "BertModel")


def test_an_error_that_nobody_foresaw_is_one_line_too(quantized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "explain", lambda model: 1 / 0)
    result = run("explain", quantized)
    assert result.exit_code == 1
    assert "ZeroDivisionError" in result.stderr
    assert "--debug" in result.stderr
    assert "Traceback" not in result.stderr


def test_debug_lets_the_error_through(tmp_path: Path) -> None:
    result = run("explain", tmp_path, "--debug")
    assert isinstance(result.exception, CheckpointError)
