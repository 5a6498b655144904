"""What the performance page says, from the records: the newest run of each workload, its tables, and where we lose."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.limits import BF16, INT8
from benchmarks.records import Sheet

OURS, FLOAT = ("torchqx-bf16", "torchqx-fp32"), "bf16"
ARMS = {
    "fp32": "compiled fp32", "bf16": "compiled bf16", "torchao-dynamic-fp32": "torchao int8 dynamic, fp32",
    "torchao-dynamic-bf16": "torchao int8 dynamic", "torchao-static-fp32": "torchao int8 static, fp32",
    "torchao-static-bf16": "torchao int8 static", "pt2e-fp32": "PT2E X86Inductor, fp32",
    "pt2e-bf16": "PT2E X86Inductor", "openvino-bf16": "OpenVINO bf16", "openvino-int8": "OpenVINO int8",
    "onnxruntime-int8": "ONNX Runtime int8", "torchqx-fp32": "torchqx, fp32", "torchqx-bf16": "torchqx",
}  # fmt: skip
ENCODERS = ("minilm", "bert", "vit")
LARGE_ROWS = 128
G = 1e9


@dataclass(frozen=True)
class Run:
    """One workload with all its arms, from the newest record that has it."""

    workload: str
    threads: int
    date: str
    arms: dict[str, dict[str, Any]]
    work: dict[str, int] | None

    @property
    def ours(self) -> str:
        """Our faster arm."""
        return min((name for name in OURS if name in self.arms), key=self.ms)

    def ms(self, arm: str) -> float:
        return self.arms[arm]["median_ms"]

    def times_faster(self, arm: str, other: str) -> float:
        """The median over rounds of the ratio of the arms' medians: both saw each round's noise."""
        pairs = zip(self.arms[other]["round_ms"], self.arms[arm]["round_ms"], strict=True)
        return median(median(theirs) / median(ours) for theirs, ours in pairs)

    def best_peer(self) -> str | None:
        """The fastest arm that is not ours; None where ours ran alone."""
        return min((name for name in self.arms if name not in OURS), key=self.ms, default=None)


def runs(records: Sequence[dict[str, Any]]) -> list[Run]:
    """Every workload that our arm ran, most threads last."""
    newest: dict[tuple[int, str], Run] = {}
    for record in sorted(records, key=lambda r: r["machine"]["date"]):
        for result in record["results"]:
            run = Run(result["workload"], record["threads"], record["machine"]["date"], result["arms"],
                      result.get("multiply_adds"))
            if any(name in run.arms for name in OURS):
                newest[run.threads, run.workload] = run
    return [newest[key] for key in sorted(newest)]


def model_sheet(runs: Sequence[Run]) -> Sheet:
    """Milliseconds of every arm; the fastest is bold."""
    arms = [name for name in ARMS if any(name in run.arms for run in runs)]
    rows = []
    for run in runs:
        fastest = min(run.arms, key=run.ms)
        cells = [f"{run.ms(name):.1f}" if name in run.arms else "" for name in arms]
        cells = [f"**{cell}**" if name == fastest else cell for name, cell in zip(arms, cells, strict=True)]
        gain = f"{run.times_faster(run.ours, FLOAT):.2f}" if FLOAT in run.arms else ""
        rows.append((run.workload, str(run.threads), *cells, gain))
    return Sheet("Models, milliseconds", ("workload", "threads", *(ARMS[name] for name in arms), "x bf16"), rows)


def losses(runs: Sequence[Run]) -> Iterator[str]:
    """A sentence for each workload where a peer is ahead."""
    for run in runs:
        peer = run.best_peer()
        if peer is not None and (ahead := run.times_faster(peer, run.ours)) > 1:
            yield f"{run.workload}, {run.threads} threads: {ARMS[peer]} is {ahead:.2f}x as fast as torchqx."


def build_sheet(runs: Sequence[Run]) -> Sheet:
    """Seconds to quantize, calibrate and compile; peak memory then and while running. Ours, bf16 and the best peer."""
    rows = [(run.workload, str(run.threads), ARMS[name], f"{arm['build_seconds']:.0f}",
             f"{arm['build_peak_mib']:.0f}", f"{arm['run_peak_mib']:.0f}")
            for run in runs for name in dict.fromkeys((run.ours, FLOAT, run.best_peer()))
            if (arm := run.arms.get(name))]
    return Sheet("Build time and memory", ("workload", "threads", "arm", "build s", "build MiB", "run MiB"), rows)


def limit_sheet(runs: Sequence[Run], limits: dict[int, dict[str, Any]]) -> Sheet:
    """Whole encoders against the time that their products alone take at the measured rates.

    Args:
        limits: the record of ``benchmarks.limits`` by number of threads.
    """
    rows = []
    for run in runs:
        if run.work is None or run.threads not in limits or not run.workload.startswith(ENCODERS):
            continue
        rates = limits[run.threads]["matmul_gmacs"]
        least = 1e3 * (run.work["weighted"] / rates[INT8] + run.work["attention"] / rates[BF16]) / G
        peer = run.best_peer()
        rows.append((run.workload, str(run.threads), f"{least:.1f}", f"{run.ms(run.ours):.1f}",
                     f"{least / run.ms(run.ours):.0%}", "" if peer is None else f"{least / run.ms(peer):.0%}"))
    return Sheet("Whole encoders against the limit",
                 ("workload", "threads", "limit ms", "torchqx ms", "share of the limit", "best peer's share"), rows)


def matmul_sheet(kernels: dict[str, Any]) -> Sheet:
    """Share of the peak int8 rate that each large matmul reaches, ours and its peers, from pytest-benchmark's JSON."""
    peak = kernels["matmul_gmacs"][INT8] * G
    arms = ("torchqx", "torchqx gelu u8", "torchqx per token", "_int_mm", "qlinear", "qlinear gelu u8", "bf16")
    rows = []
    for info in (result["extra_info"] for result in kernels["benchmarks"]):
        if info["kernel"] == "int8 linear" and int(info["size"].split()[0]) >= LARGE_ROWS:
            shares = (info["int8_multiply_adds"] / (1e-6 * info["median_us"][arm]) / peak for arm in arms)
            rows.append((info["size"], *(f"{share:.0%}" for share in shares)))
    return Sheet("Large matmuls, share of the peak int8 rate", ("rows x K x N", *arms), rows)


def kernel_sheet(kernels: dict[str, Any]) -> Sheet:
    """Every other kernel: microseconds, and the peers' time over ours."""
    rows = []
    for info in (result["extra_info"] for result in kernels["benchmarks"]):
        times = info["median_us"]
        if info["kernel"] != "int8 linear" or int(info["size"].split()[0]) < LARGE_ROWS:
            others = ", ".join(f"{name} {us / times['torchqx']:.2f}" for name, us in times.items() if name != "torchqx")
            rows.append((f"{info['kernel']} {info['size']}", f"{times['torchqx']:.1f}", others))
    return Sheet("Other kernels", ("kernel", "torchqx us", "times torchqx's"), rows)


def growth_sheet(growth: dict[str, Any]) -> Sheet:
    """Time against work, one row a size."""
    rows = []
    for size in growth["results"]:
        ms = size["median_ms"]
        cells = [f"{ms[arm]:.2f}" if arm in ms else "failed" for arm in (FLOAT, OURS[0])]
        gain = f"{size['times_faster']:.2f}" if "times_faster" in size else ""
        rows.append((str(size["layers"]), str(size["batch"]), str(size["tokens"]), *cells, gain))
    return Sheet(f"Growth, width {growth['width']}, {growth['threads']} threads",
                 ("layers", "batch", "tokens", "bf16 ms", "torchqx ms", "x bf16"), rows)
