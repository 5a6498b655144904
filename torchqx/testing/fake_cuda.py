"""One CUDA (or ROCm) device that is not there: everything of torch and Triton that is replaced for it, in this file.

Nothing may be *executed* on the device. Dynamo, AOTAutograd, Inductor's passes, its scheduler and its Triton code
generator run as they are; only their questions about the device are answered here.

| replaced | why |
|---|---|
| the CUDA device guard (builds without CUDA) | any op on a fake CUDA tensor enters one; meta's does nothing |
| functions of ``torch.cuda`` | availability, properties, current device, random state |
| Dynamo's device interface for "cuda" | the same questions, asked by Inductor |
| ``FakeTensorMode.avoid_device_init`` | a device looks available now, yet no tensor may be allocated on it |
| ``fake_tensor.init_gpu_context`` (torch up to 2.11) | would start CUDA |
| Inductor's folder of uniform constants | computes a tensor full of one value on its device, to see the value |
| Triton's active driver | tells for which target a kernel is to be compiled |
| ``torch.version.cuda`` and ``.hip`` | choose between NVIDIA's and AMD's configurations |

All of it relies on private names; one that a torch or Triton version lacks is an UnsupportedError that names it.
"""

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import triton
from torch._dynamo import device_interface
from torch._inductor.fx_passes import joint_graph
from torch._inductor.runtime import hints
from torch._subclasses import fake_tensor
from torch.fx import Node
from torch.utils import _triton as triton_questions
from triton.backends import backends
from triton.runtime import driver

from torchqx.errors import UnsupportedError
from torchqx.testing.devices import Architecture, architecture

_GUARDS = "_ZN3c104impl26device_guard_impl_registryE"  # c10::impl::device_guard_impl_registry
_CUDA, _META = 1, 14  # c10::DeviceType


def private(owner: Any, name: str) -> Any:
    """``owner.name``. Raises UnsupportedError where this version of torch or Triton has no such name."""
    found = getattr(owner, name, None)
    if found is None:
        where = getattr(owner, "__name__", type(owner).__name__)
        raise UnsupportedError(
            f"torch {torch.__version__} with triton {triton.__version__} has no {where}.{name}, on which the fake GPU "
            "relies", where="torchqx.testing", remedy="find what took its place, or use versions of constraints.txt.")
    return found


@contextlib.contextmanager
def fake_cuda(arch: str = "sm_90") -> Iterator[Architecture]:
    """While inside, one device of architecture ``arch`` seems to be present as cuda:0.

    Raises:
        UnsupportedError: an unknown architecture, or a private name that this torch does not have.
    """
    there = architecture(arch)
    properties = there.properties
    _install_device_guard()
    device_interface.get_registered_device_interfaces()  # fills the table of which one entry is replaced
    interface = _interface(there, properties)
    with contextlib.ExitStack() as stack:
        def replace(owner: Any, name: str, value: Any) -> None:
            private(owner, name)
            stack.enter_context(mock.patch.object(owner, name, value))

        for name, answer in _torch_cuda(there, properties).items():
            replace(torch.cuda, name, answer)
        interfaces = private(device_interface, "device_interfaces")
        stack.enter_context(mock.patch.dict(interfaces, {"cuda": interface, "cuda:0": interface}))
        if hasattr(fake_tensor, "init_gpu_context"):
            replace(fake_tensor, "init_gpu_context", lambda _: None)
        replace(fake_tensor.FakeTensorMode, "avoid_device_init", property(lambda _: True))
        folder = joint_graph.UniformValueConstantFolder
        replace(folder, "_deduce_value", _deduce_on_cpu(private(folder, "_deduce_value")))
        fake_driver = _driver(there)
        stack.enter_context(mock.patch.object(driver, "_active", fake_driver))
        stack.enter_context(mock.patch.object(driver, "_default", fake_driver))
        stack.enter_context(mock.patch.object(torch.version, "hip", "6.4.0" if there.amd else None))
        stack.enter_context(mock.patch.object(torch.version, "cuda", None if there.amd else "13.0"))
        for clear in _caches():
            clear()
            stack.callback(clear)
        yield there


def _install_device_guard() -> None:
    """Give CUDA the meta device's guard, in torch builds that have none; it stays for the rest of the process."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * (_META + 1)).in_dll(library, _GUARDS)
    if not guards[_CUDA]:
        assert guards[_META], "the meta device has a guard in every build"
        guards[_CUDA] = guards[_META]


def _torch_cuda(there: Architecture, properties: SimpleNamespace) -> dict[str, Callable[..., Any]]:
    return {
        "is_available": lambda: True,
        "is_initialized": lambda: False,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda _: None,
        "_exchange_device": lambda _: 0,
        "_maybe_exchange_device": lambda _: 0,
        "synchronize": lambda _=None: None,
        "get_device_properties": lambda _=None: properties,
        "get_device_capability": lambda _=None: there.capability,
        "get_device_name": lambda _=None: there.title,
        "mem_get_info": lambda _=None: (there.memory, there.memory),
        "is_bf16_supported": lambda *_, **__: True,
        "is_tf32_supported": lambda: True,
        "is_current_stream_capturing": lambda: False,
        "get_rng_state": lambda _=None: torch.zeros(16, dtype=torch.uint8, device="cpu"),
        "set_rng_state": lambda *_: None,
    }


def _interface(there: Architecture, properties: SimpleNamespace) -> type:
    capability = there.name if there.amd else there.target.arch

    class FakeCudaInterface(device_interface.CudaInterface):
        class Worker:
            set_device = staticmethod(lambda _: None)
            current_device = staticmethod(lambda: 0)
            get_device_properties = staticmethod(lambda _=None: properties)

        device = staticmethod(lambda _: contextlib.nullcontext())
        is_available = staticmethod(lambda: True)
        device_count = staticmethod(lambda: 1)
        current_device = staticmethod(lambda: 0)
        set_device = staticmethod(lambda _: None)
        exchange_device = staticmethod(lambda _: 0)
        maybe_exchange_device = staticmethod(lambda _: 0)
        synchronize = staticmethod(lambda _=None: None)
        get_raw_stream = staticmethod(lambda _=None: 0)
        memory_allocated = staticmethod(lambda _=None: 0)
        get_device_properties = staticmethod(lambda _=None: properties)
        get_compute_capability = staticmethod(lambda _=None: capability)
        is_bf16_supported = staticmethod(lambda including_emulation=False: True)
        is_triton_capable = staticmethod(lambda _=None: True)
        raise_if_triton_unavailable = staticmethod(lambda _=None: None)

    return FakeCudaInterface


def _driver(there: Architecture) -> Any:
    def no_benchmark(*_: Any, **__: Any) -> None:
        raise UnsupportedError("a benchmark was asked for, and there is no GPU", where="torchqx.testing",
                               remedy="leave Inductor one choice; lower_for_gpu does.")

    # Inductor asks whether the active driver is an instance of the real class.
    class FakeDriver(backends["amd" if there.amd else "nvidia"].driver):
        utils = SimpleNamespace(get_device_properties=lambda _: {
            "max_shared_mem": there.shared, "multiprocessor_count": there.processors, "warpSize": there.warp,
            "max_num_regs": 65536})
        launcher_cls = None

        def __init__(self) -> None:
            """Without a library to load."""

        is_active = staticmethod(lambda: True)
        get_current_target = staticmethod(lambda: there.target)
        get_current_device = staticmethod(lambda: 0)
        set_current_device = staticmethod(lambda _: None)
        get_current_stream = staticmethod(lambda _=0: 0)
        get_active_torch_device = staticmethod(lambda: torch.device("cuda", 0))
        get_device_interface = staticmethod(lambda: torch.cuda)
        get_benchmarker = staticmethod(lambda: no_benchmark)
        map_python_to_cpp_type = staticmethod(lambda kind: kind)

    return FakeDriver()


def _deduce_on_cpu(deduce: Callable[[Any, Node], Any]) -> Callable[[Any, Node], Any]:
    def deduced(folder: Any, node: Node) -> Any:
        given = node.kwargs
        if given.get("device") is None:
            return deduce(folder, node)
        node.kwargs = given | {"device": torch.device("cpu")}
        try:
            return deduce(folder, node)
        finally:
            node.kwargs = given

    return deduced


def _caches() -> list[Callable[[], None]]:
    """What remembers answers about the device: to be asked anew inside, and again outside."""
    owners = [getattr(triton_questions, name) for name in dir(triton_questions)]
    owners.append(private(hints.DeviceProperties, "create"))
    return [owner.cache_clear for owner in owners if hasattr(owner, "cache_clear")]
