"""The file behind ``torchqx.save``: named tensors, storage tensors among them, and a digest of each part.

One safetensors file. The layout is torchao's (a storage tensor's components are plain tensors, its attributes are
metadata), with two more metadata entries:

| entry | content |
|---|---|
| ``torchqx`` | JSON: format version; digests: tensor -> SHA-256; tied: name -> whose tensor it shares; records |
| ``torchqx_digest`` | SHA-256 of all other metadata |

The digests find truncation and accidents at about 0.2 s for 150 MB. Who forges a file can compute them again.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
from torchao.prototype.safetensors.safetensors_utils import object_from_dict

from torchqx.errors import CheckpointError, TorchqxError, UnsupportedError
from torchqx.plan import SiteRecord, records_from_json, records_to_json

FILE_NAME = "torchqx.safetensors"
EXTRA, DIGEST, VERSION = "torchqx", "torchqx_digest", 1


@dataclass
class Checkpoint:
    """What is in a file.

    Attributes:
        tensors: every name of a state dict; tied names have the same tensor.
        records: site records that no weight carries.
    """

    tensors: dict[str, Tensor]
    records: list[SiteRecord]


def file_in(path: str | os.PathLike) -> Path:
    """``path`` if it names a safetensors file, else the file in that directory."""
    path = Path(path)
    return path if path.suffix == ".safetensors" else path / FILE_NAME


def write(checkpoint: Checkpoint, file: Path) -> None:
    """Write ``file``, whole or not at all. Raises UnsupportedError for an entry that safetensors cannot hold."""
    first: dict[int, str] = {}
    tied, single = {}, {}
    for name, value in checkpoint.tensors.items():
        if first.setdefault(id(value), name) != name:
            tied[name] = first[id(value)]
        else:
            single[_dotted(name)] = _storable(name, value)
    try:
        tensors, metadata = flatten_tensor_state_dict(single)
    except ValueError as error:
        raise UnsupportedError(str(error), where=str(file), remedy="quantize with torchqx or torchao.") from error
    digests = {name: _tensor_digest(tensor) for name, tensor in tensors.items()}
    extra = {"version": VERSION, "digests": digests, "tied": tied, "records": records_to_json(checkpoint.records)}
    metadata |= {"format": "pt", EXTRA: json.dumps(extra)}
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(file.name + ".unfinished")
    save_file(tensors, unfinished, metadata | {DIGEST: _metadata_digest(metadata)})
    os.replace(unfinished, file)


def read(file: Path) -> Checkpoint:
    """The inverse of :func:`write`. Raises CheckpointError, naming the tensor, for a file that was changed."""
    tensors, metadata = _contents(file)
    if EXTRA not in metadata:
        raise CheckpointError("was not written by torchqx.save", where=str(file),
                              remedy="load a directory of save_pretrained with from_pretrained.")
    if metadata.pop(DIGEST, None) != _metadata_digest(metadata):
        raise _damaged("the metadata does not match its digest", file)
    try:
        return _parse(tensors, metadata, file)
    except TorchqxError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(f"the metadata is not as torchqx.save writes it ({error!r})", file) from error


def _parse(tensors: dict[str, Tensor], metadata: dict[str, str], file: Path) -> Checkpoint:
    extra = json.loads(metadata[EXTRA])
    if extra["version"] != VERSION:
        raise CheckpointError(f"format version {extra['version']}, this torchqx reads {VERSION}", where=str(file),
                              remedy="install the torchqx that wrote it.")
    if extra["digests"].keys() != tensors.keys():
        raise _damaged("tensors are missing, or were added", file)
    for name, tensor in tensors.items():
        if extra["digests"][name] != _tensor_digest(tensor):
            raise _damaged(f"{name} does not match its digest", file)
    found = {name.removeprefix("."): _rebuild(name, json.loads(metadata[name]), tensors, file)
             for name in json.loads(metadata["tensor_names"])}
    found |= {name: found[other] for name, other in extra["tied"].items()}
    return Checkpoint(found, records_from_json(extra["records"]))


def _contents(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not file.is_file():
        raise CheckpointError("no such file", where=str(file), remedy="give what was passed to torchqx.save.")
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise _damaged(f"is truncated or no safetensors file ({error})", file) from error


def _rebuild(name: str, description: dict[str, Any], tensors: dict[str, Tensor], file: Path) -> Tensor:
    if description["_type"] == "Tensor":
        return tensors[name]
    module, _, own = name.rpartition(".")
    # By exact name: torchao's own reader goes by prefix, and confuses parameters "up" and "up_b" of one module.
    parts = {part: tensors[f"{module}._{own}_{part}"] for part in description["_tensor_data_names"]}
    try:
        return object_from_dict(description | {"_data": description["_data"] | parts})
    except ValueError as error:
        # torchao puts its own words around ours.
        cause = error.__context__ if isinstance(error.__context__, TorchqxError) else error
        raise _damaged(f"{name}: {getattr(cause, 'problem', cause)}", file) from error


def _dotted(name: str) -> str:
    # torchao splits names at their last dot, and a parameter of the root has none.
    return name if "." in name else f".{name}"


def _storable(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        kind = value.layout if isinstance(value, Tensor) else type(value).__name__
        raise UnsupportedError(f"an entry of type {kind}", where=name, remedy="save it beside the checkpoint.")
    value = value.detach()
    # A copy where memory is shared with another entry: safetensors refuses that.
    return value.clone(memory_format=torch.contiguous_format) if type(value) is Tensor else value


def _tensor_digest(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _metadata_digest(metadata: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def _damaged(problem: str, file: Path) -> CheckpointError:
    return CheckpointError(problem, where=str(file), remedy="the checkpoint is damaged: copy or save it again.")
