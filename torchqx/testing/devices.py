"""What Inductor and Triton ask a GPU about itself, for the three architectures that the checks compile for."""

from dataclasses import dataclass
from types import SimpleNamespace

from triton.backends.compiler import GPUTarget

from torchqx.errors import UnsupportedError


@dataclass(frozen=True)
class Architecture:
    """A GPU that is not there.

    Attributes:
        name: "sm_90", or AMD's "gfx942".
        capability: major and minor version.
        shared: bytes of shared memory that one block may ask for.
    """

    name: str
    title: str
    capability: tuple[int, int]
    processors: int
    memory: int
    shared: int
    cache: int
    warp: int = 32

    @property
    def amd(self) -> bool:
        return self.name.startswith("gfx")

    @property
    def target(self) -> GPUTarget:
        """What Triton compiles for."""
        major, minor = self.capability
        return GPUTarget("hip", self.name, self.warp) if self.amd else GPUTarget("cuda", 10 * major + minor, self.warp)

    @property
    def properties(self) -> SimpleNamespace:
        """What ``torch.cuda.get_device_properties`` would return."""
        return SimpleNamespace(
            name=self.title, major=self.capability[0], minor=self.capability[1], warp_size=self.warp,
            multi_processor_count=self.processors, total_memory=self.memory, L2_cache_size=self.cache,
            regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, max_threads_per_block=1024,
            shared_memory_per_block=min(self.shared, 49152), shared_memory_per_block_optin=self.shared,
            shared_memory_per_multiprocessor=self.shared + 1024, is_integrated=0, is_multi_gpu_board=0,
            gcnArchName=f"{self.name}:sramecc+:xnack-" if self.amd else "", pci_bus_id=0, uuid="0")


GIB, MIB = 1 << 30, 1 << 20
ARCHITECTURES = {a.name: a for a in (
    Architecture("sm_80", "NVIDIA A100", (8, 0), 108, 80 * GIB, 166912, 40 * MIB),
    Architecture("sm_90", "NVIDIA H200", (9, 0), 132, 141 * GIB, 232448, 60 * MIB),
    Architecture("gfx942", "AMD Instinct MI300X", (9, 4), 304, 192 * GIB, 65536, 4 * MIB, warp=64),
)}


def architecture(name: str) -> Architecture:
    """The architecture called ``name``. Raises UnsupportedError for one that is not described here."""
    if name not in ARCHITECTURES:
        raise UnsupportedError(f"unknown architecture {name!r}", where="arch",
                               remedy=f"choose one of {', '.join(ARCHITECTURES)}.")
    return ARCHITECTURES[name]
