"""Save a quantized model and load it into a float model of the same architecture, plan included."""

import os

from torch import Tensor
from torch.nn import Module, Parameter

from torchqx.checkpoint_file import Checkpoint, file_in, read, write
from torchqx.errors import AlreadyQuantizedError, NotPreparedError, PlanMismatchError
from torchqx.plan import records_from_json
from torchqx.storage import QuantizedWeight
from torchqx.workflow import RECORDS, SESSION, unwrap


def save(model: Module, path: str | os.PathLike) -> None:
    """Write ``model``'s state dict, with the site records, to a ``….safetensors`` file or into a directory.

    Raises:
        NotPreparedError: the model is not quantized.
        UnsupportedError: its state holds something that is no tensor.
    """
    model = unwrap(model)
    records = model.__dict__.get(RECORDS, [])
    if not records and not _quantized(model):
        raise NotPreparedError("the model holds no quantized weight", where=type(model).__name__,
                               remedy="quantize it with torchqx.quantize or quantize_ first.")
    write(Checkpoint(model.state_dict(keep_vars=True), records), file_in(path))


def load(model: Module, path: str | os.PathLike) -> Module:
    """Put what :func:`save` wrote in place of ``model``'s parameters and buffers; returns ``model``.

    The tensors take the devices of those that they replace (a meta tensor's: the CPU) and keep their own dtypes. Names
    that shared one parameter when saved share one again. On an error the model is as it was.

    Raises:
        AlreadyQuantizedError: the model is quantized, or prepared, already.
        CheckpointError: the file is missing, truncated, changed, or inconsistent in itself.
        PlanMismatchError: it was saved from another model: other names, shapes, or sites.
    """
    model = unwrap(model)
    if SESSION in model.__dict__ or RECORDS in model.__dict__ or _quantized(model):
        raise AlreadyQuantizedError("the model is quantized or prepared already", where=type(model).__name__,
                                    remedy="load into a float model.")
    file = file_in(path)
    checkpoint = read(file)
    own = model.state_dict(keep_vars=True)
    _check_fit(own, checkpoint.tensors, str(file))
    placed: dict[int, Tensor] = {}
    for name, value in checkpoint.tensors.items():
        if id(value) not in placed:
            placed[id(value)] = _placed(value, own[name])
    for prefix, module in model.named_modules(remove_duplicate=False):
        for slots in (module._parameters, module._buffers):
            for name in slots:
                full = f"{prefix}.{name}" if prefix else name
                if full in checkpoint.tensors:
                    slots[name] = placed[id(checkpoint.tensors[full])]
    if checkpoint.records:
        model.__dict__[RECORDS] = checkpoint.records
    return model


def _quantized(model: Module) -> bool:
    return any(isinstance(p, QuantizedWeight) for p in model.parameters())


def _placed(value: Tensor, old: Tensor) -> Tensor:
    value = value.to("cpu" if old.device.type == "meta" else old.device)
    if not isinstance(old, Parameter):
        return value
    return Parameter(value, requires_grad=type(value) is Tensor and old.requires_grad)


def _check_fit(own: dict[str, Tensor], saved: dict[str, Tensor], file: str) -> None:
    """Raise PlanMismatchError unless ``saved`` can stand where ``own`` stands, and its site records name ``own``."""
    missing, unknown = sorted(own.keys() - saved.keys()), sorted(saved.keys() - own.keys())
    if missing or unknown:
        raise _mismatch(f"lacks {len(missing)} of the model's tensors {missing[:3]} and has {len(unknown)} others "
                        f"{unknown[:3]}", file)
    for name, value in saved.items():
        wanted = own[name]
        if value.shape != wanted.shape or value.is_floating_point() != wanted.is_floating_point():
            raise _mismatch(f"{name} is {value.dtype} {list(value.shape)}, the model's is {wanted.dtype} "
                            f"{list(wanted.shape)}", file)
    names: dict[int, list[str]] = {}
    for name, value in saved.items():
        names.setdefault(id(value), []).append(name)
    for value in {id(v): v for v in saved.values() if isinstance(v, QuantizedWeight)}.values():
        for record in records_from_json(value.plan)[:1]:  # its own site's; what follows are reports that it carries
            if not any(_ends(a, b) or _ends(b, a) for a in names[id(value)] for b in record.weights):
                raise _mismatch(f"{names[id(value)][0]} carries the plan of site {record.key!r}, which reads "
                                f"{record.weights}", file)


def _ends(name: str, ending: str) -> bool:
    # Either may be the longer one: a layer quantized on its own, or a part of a quantized model saved on its own.
    return name == ending or name.endswith("." + ending)


def _mismatch(problem: str, file: str) -> PlanMismatchError:
    return PlanMismatchError(problem, where=file, remedy="load into a model of the architecture that was saved.")
