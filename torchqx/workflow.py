"""Prepare, calibrate, convert: the plain functions behind torchao's ``quantize_`` and the command line."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch._dynamo.external_utils import wrap_inline
from torch.nn import Module, Parameter

from torchqx.backend import build_runner, refuse
from torchqx.distributed import solve_together, world
from torchqx.errors import (
    AlreadyQuantizedError,
    CalibrationError,
    NoCalibrationDataError,
    NoSitesError,
    NotPreparedError,
    TorchqxError,
    UnsupportedError,
)
from torchqx.full_names import linear_records, other_records, scan_records
from torchqx.huggingface import attach
from torchqx.plan import SiteRecord, records_to_json
from torchqx.progress import Progress, quiet
from torchqx.recipe import AffineRecipe
from torchqx.sequential import solve_sequentially
from torchqx.session import ACTING, Session
from torchqx.site_state import SiteState
from torchqx.state_space_hosts import takes_operators
from torchqx.storage import QuantizedWeight

SESSION = "_torchqx_session"
RECORDS = "_torchqx_records"


def whole_model(module: Module, name: str = "") -> bool:
    """A ``filter_fn`` for torchao's ``quantize_`` that matches the root alone: all sites are found in its graph."""
    return name == ""


def unwrap(model: Module) -> Module:
    """The model inside ``torch.compile``'s wrapper, or the model itself."""
    return getattr(model, "_orig_mod", model)


def prepare(model: Module, recipe: AffineRecipe) -> Module:
    """From now on ``model``'s calls calibrate; their results stay the float model's, to rounding. Returns ``model``.

    Raises:
        AlreadyQuantizedError: it is quantized, or prepared, already.
        UnsupportedError: it is compiled with another backend already.
    """
    model = unwrap(model)
    if any(isinstance(p, QuantizedWeight) for p in model.parameters()):
        raise AlreadyQuantizedError("the model holds quantized weights", where=type(model).__name__,
                                    remedy="start from the float model.")
    if SESSION in model.__dict__:
        raise AlreadyQuantizedError("the model is prepared already", where=type(model).__name__,
                                    remedy="calibrate and convert it, or call torchqx.abandon(model).")
    if model._compiled_call_impl is not None:
        raise UnsupportedError("the model is compiled already", where=type(model).__name__,
                               remedy="prepare the plain model and compile after convert.")
    session = Session(recipe, calibration_only=True)

    @takes_operators
    def backend(gm: Any, example_inputs: Any, **_: Any) -> Callable[..., Any]:
        try:
            return build_runner(gm, example_inputs, session)
        except TorchqxError as error:
            return refuse(error)

    # Module.compile() leaves torch's own containers uncompiled: Dynamo skips frames of torch.nn unless wrapped.
    model._compiled_call_impl = torch.compile(wrap_inline(model._call_impl), backend=backend)
    model.__dict__[SESSION] = session
    return model


def abandon(model: Module) -> Module:
    """Undo :func:`prepare`: drop the statistics. Returns ``model``. Raises NotPreparedError if it is not prepared."""
    model = unwrap(model)
    _session(model).batches = []  # torch's cache of compiled code keeps the session
    del model.__dict__[SESSION]
    model.__dict__.pop("_compiled_call_impl", None)
    return model


def convert(model: Module, progress: Progress = quiet) -> Module:
    """Solve every site of a prepared and calibrated model and put integer weights in place. Returns ``model``.

    Args:
        progress: wraps the loop over the sites, "solving".

    Under ``torch.distributed`` every rank calls this; the ranks' statistics are merged and the result is the same.

    Raises:
        NotPreparedError: it was not prepared.
        NoCalibrationDataError: it was not called since.
        NoSitesError: nothing in it can be quantized.
        NonFiniteError, ShapeError, ...: see :func:`torchqx.solve.solve_site`. The model stays as it was, and prepared.
    """
    model = unwrap(model)
    session = _session(model)
    states = session.states_in(model)
    if not session.knows(model) and next(model.parameters(), None) is not None:
        raise NoCalibrationDataError("the model was not called after prepare", where=type(model).__name__,
                                     remedy="run calibration batches through it first, not from torch.func.vmap.")
    if not any(s.calibrating or s.parameters is not None for s in states):
        reasons = "; ".join(f"{s.record.key}: {s.record.reason}" for s in states[:5])
        raise NoSitesError(f"no site to quantize ({reasons or 'no weighted matmul'})", where=type(model).__name__,
                           remedy="check the recipe's include, exclude and quantize_head.")
    with torch.inference_mode(False), torch.no_grad():
        if session.recipe.calibration == "sequential" and world() > 1:
            raise UnsupportedError("sequential calibration over several ranks", where="calibration",
                                   remedy="take calibration='parallel', or calibrate on one rank.")
        if session.recipe.calibration == "sequential":
            solve_sequentially(session, states, progress)
        if world() > 1:
            solve_together(session, states)
        else:
            session.solve(progress([s for s in states if s.calibrating], "solving"))
        replace_weights(model, linear_records(session, model), other_records(session, model))
    abandon(model)
    return attach(model, session.recipe)


def quantize(model: Module, recipe: AffineRecipe, calibration: Iterable[Any],
             progress: Progress = quiet) -> Module:
    """:func:`prepare`, a call per calibration batch, :func:`convert`: in place; the float model again if that fails.

    Args:
        calibration: batches; a mapping is passed as keyword arguments, a tuple or list as positional ones.
        progress: wraps the two long loops, over "calibrating" batches and "solving" sites, for progress bars.

    Raises:
        NoCalibrationDataError: ``calibration`` is empty.
        CalibrationError: the model failed on a batch; else as prepare and convert.
    """
    model = unwrap(model)
    prepare(model, recipe)
    try:
        with torch.no_grad():
            for i, batch in enumerate(progress(calibration, "calibrating")):
                _calibrate(model, batch, f"calibration batch {i}")
        return convert(model, progress)
    except BaseException:
        with suppress(NotPreparedError):
            abandon(model)
        raise


def _calibrate(model: Module, batch: Any, where: str) -> None:
    try:
        call(model, batch)
    except TorchqxError:
        raise
    except Exception as error:
        problem = f"the model does not take it: {type(error).__name__}: {error}"
        raise CalibrationError(problem, where=where, remedy="give what the model's forward takes: a tensor, a tuple of "
                               "positional arguments, or a mapping of named ones.") from error


def call(model: Module, batch: Any) -> Any:
    """``model`` on one batch, however it is packed."""
    if isinstance(batch, Mapping) or (hasattr(batch, "keys") and hasattr(batch, "__getitem__")):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


def replace_weights(model: Module, records: dict[SiteState, SiteRecord], others: list[SiteRecord]) -> None:
    """Put storage tensors where the solved parameters stood. Everything is made before anything is replaced.

    Args:
        records: the solved states and those that stay float, each with its record; ``others``: what goes along.
    """
    made: dict[int, QuantizedWeight] = {}
    carried = list(others)
    for state, record in records.items():
        carried += [record, *scan_records(state, record)] if state.parameters is None else []
    for state, record in records.items():
        for i, weight in enumerate(state.weights() if state.parameters is not None else []):
            quantized = state.quantized(weight)
            own = [record, *carried] if i == 0 else []
            quantized.plan = records_to_json([*own, *scan_records(state, record, i)])
            made[id(weight)], carried = quantized, carried if i else []
    parameters = {i: Parameter(quantized, requires_grad=False) for i, quantized in made.items()}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and id(parameter) in parameters:
                module._parameters[name] = parameters[id(parameter)]
    model.__dict__.pop(RECORDS, None)
    if not made:
        model.__dict__[RECORDS] = carried
    for parameter in model.parameters():
        ACTING.pop(parameter, None)  # graphs that were bound before no longer act


def _session(model: Module) -> Session:
    if SESSION not in model.__dict__:
        raise NotPreparedError("the model was not prepared", where=type(model).__name__,
                               remedy="call quantize_ with step='prepare' first, or torchqx.quantize.")
    return model.__dict__[SESSION]
