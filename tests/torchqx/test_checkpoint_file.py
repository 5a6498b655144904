import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import torchqx
from torchqx.checkpoint_file import Checkpoint, _metadata_digest, _tensor_digest, file_in, read, write
from torchqx.errors import CheckpointError, UnsupportedError
from torchqx.layouts import WeightLayout
from torchqx.plan import SiteRecord
from torchqx.quantize_weight import SiteParameters, quantize_weight
from torchqx.quantizers import AffineQuantizer

Change = Callable[[dict[str, Tensor], dict[str, str]], None]


def weight(rows: int = 7, columns: int = 12) -> torchqx.QuantizedWeight:
    spec = SiteParameters(AffineQuantizer(granularity="token", dynamic=True),
                          AffineQuantizer(symmetric=True, granularity="channel", signed=True))
    return quantize_weight(torch.randn(rows, columns), WeightLayout.OUT_IN, "a", spec)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    shared = torch.randn(3, 4)
    tensors = {"up": weight(), "up_b": weight(5, 6), "layer.weight": weight(63, 100), "one.w": shared, "two.w": shared,
               "a.half": torch.ones(2).bfloat16(), "scalar": torch.tensor(3), "empty": torch.empty(0, 4),
               "view": torch.arange(12.0).reshape(3, 4).t(), "flag": torch.tensor([True, False])}
    write(Checkpoint(tensors, [SiteRecord("a", "norm", "skipped", "why")]), tmp_path / "a.safetensors")
    tensors_of.clear()
    tensors_of.update(tensors)
    return tmp_path / "a.safetensors"


tensors_of: dict[str, Tensor] = {}


def rewrite(file: Path, change: Change, sign: bool) -> None:
    """Change a file's parts; ``sign``: as a forger would, with digests that match."""
    with safe_open(file, framework="pt") as opened:
        tensors = {n: opened.get_tensor(n) for n in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata()
    change(tensors, metadata)
    if sign:
        metadata.pop("torchqx_digest", None)
        if "torchqx" in metadata and metadata["torchqx"].startswith("{"):
            digests = {n: _tensor_digest(t) for n, t in tensors.items()}
            metadata["torchqx"] = json.dumps(json.loads(metadata["torchqx"]) | {"digests": digests})
        metadata["torchqx_digest"] = _metadata_digest(metadata)
    save_file(tensors, file, metadata)


def test_round_trip(file: Path) -> None:
    found = read(file)
    assert found.tensors.keys() == tensors_of.keys()
    assert found.tensors["one.w"] is found.tensors["two.w"]
    assert found.records == [SiteRecord("a", "norm", "skipped", "why")]
    for name, tensor in tensors_of.items():
        other = found.tensors[name]
        assert type(other) is type(tensor)
        assert other.shape == tensor.shape
        assert other.dtype == tensor.dtype
        if isinstance(tensor, torchqx.QuantizedWeight):
            assert torch.equal(other.qdata, tensor.qdata)
            assert torch.equal(other.scale, tensor.scale)
        else:
            assert torch.equal(other, tensor)


def test_writing_replaces_the_file_whole(file: Path) -> None:
    write(Checkpoint({"b.c": torch.ones(2)}, []), file)
    assert list(read(file).tensors) == ["b.c"]
    assert len(list(file.parent.iterdir())) == 1


def test_file_in() -> None:
    assert file_in("x") == Path("x/torchqx.safetensors")
    assert file_in("x/y.safetensors") == Path("x/y.safetensors")


def test_an_entry_that_is_no_tensor(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="extra"):
        write(Checkpoint({"m.extra": {"a": 1}}, []), tmp_path / "a.safetensors")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        read(tmp_path / "a.safetensors")


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_truncated(file: Path, kept: int) -> None:
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="truncated"):
        read(file)


def test_any_flipped_byte_of_a_tensor_is_found(file: Path) -> None:
    whole = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(whole[:8], "little")
    for position in range(start, len(whole), (len(whole) - start) // 9):
        changed = whole.copy()
        changed[position] ^= 1
        file.write_bytes(changed)
        with pytest.raises(CheckpointError, match="does not match its digest"):
            read(file)


def test_changed_metadata(file: Path) -> None:
    rewrite(file, lambda t, m: m.update({"layer.weight": m["layer.weight"].replace("out_in", "in_out")}), sign=False)
    with pytest.raises(CheckpointError, match="metadata does not match"):
        read(file)


def test_a_tensor_less(file: Path) -> None:
    rewrite(file, lambda t, m: t.pop("layer._weight_scale"), sign=False)
    with pytest.raises(CheckpointError, match="missing, or were added"):
        read(file)


def replaced(name: str, old: str, new: str) -> Change:
    def change(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        assert old in metadata[name]
        metadata[name] = metadata[name].replace(old, new)

    return change


def filled(name: str, value: float) -> Change:
    return lambda tensors, metadata: tensors[name].reshape(-1)[:1].fill_(value)


@pytest.mark.parametrize(("change", "match"), [
    (filled("layer._weight_scale", float("nan")), "layer.weight: scale holds values"),
    (filled("layer._weight_scale", float("inf")), "layer.weight: scale holds values"),
    (filled("layer._weight_scale", 0.0), "layer.weight: scale holds values"),
    (filled("layer._weight_qdata", -128), "layer.weight: qdata holds values"),
    (lambda t, m: t.update({"layer._weight_scale": torch.ones(62)}), r"scale is torch.float32 \[62\]"),
    (lambda t, m: t.update({"layer._weight_qdata": torch.ones(63, 100)}), "qdata is torch.float32"),
    (lambda t, m: t.pop("layer._weight_scale"), "metadata is not as"),
    (replaced("layer.weight", '"[]"', '"[{]"'), "layer.weight: the plan is not valid JSON"),
    (replaced("layer.weight", '"[]"', '"[{}]"'), "layer.weight: a site record"),
    (replaced("layer.weight", "out_in", "sideways"), "layer.weight: unknown layout"),
    (replaced("layer.weight", "100", "101"), r"layer.weight: qdata is .*\[1, 26, 64, 4\]"),
    (replaced("layer.weight", "token", "banana"), "layer.weight: not a quantizer"),
    (replaced("layer.weight", "QuantizedWeight", "Popen"), "layer.weight: Failed to find class"),
    (replaced("torchqx", '"version": 1', '"version": 2'), "format version 2"),
    (replaced("torchqx", '"tied"', '"tide"'), "metadata is not as"),
    (replaced("torchqx", "two.w", "one.w"), None),
    (lambda t, m: m.update({"torchqx": "[]"}), "metadata is not as"),
    (lambda t, m: m.update({"tensor_names": "no json"}), "metadata is not as"),
    (lambda t, m: m.pop("torchqx"), "was not written by torchqx.save"),
])
def test_a_forged_file(file: Path, change: Change, match: str | None) -> None:
    rewrite(file, change, sign=True)
    if match is None:
        assert "two.w" not in read(file).tensors
        return
    with pytest.raises(CheckpointError, match=match) as raised:
        read(file)
    assert str(file) in str(raised.value)
    assert "Remedy" in str(raised.value)


def test_tensors_of_other_kinds_are_refused(tmp_path: Path) -> None:
    sparse = nn.Parameter(torch.eye(3).to_sparse())
    with pytest.raises(UnsupportedError):
        write(Checkpoint({"a.b": sparse}, []), tmp_path / "a.safetensors")
