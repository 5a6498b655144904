"""The performance page's figures, SVG."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "torchqx"  # the same record draws the same file
matplotlib.rcParams["svg.fonttype"] = "none"

from matplotlib import pyplot as plt  # noqa: E402  after the backend is chosen

from benchmarks.performance import FLOAT, OURS  # noqa: E402

AXES = {"tokens": "tokens in a row", "batch": "rows in a batch", "layers": "layers"}
LINES = {FLOAT: ("compiled bf16", "o--"), OURS[0]: ("torchqx", "o-")}


def series(growth: dict[str, Any], axis: str) -> list[dict[str, Any]]:
    """The sizes in which ``axis`` alone differs from the usual one, the most common value of each other axis."""
    usual = {}
    for name in AXES:
        values = [size[name] for size in growth["results"]]
        usual[name] = max(set(values), key=values.count)
    grown = [size for size in growth["results"] if all(size[n] == usual[n] for n in AXES if n != axis)]
    return sorted(grown, key=lambda size: size[axis])


def plot_growth(growth: dict[str, Any], path: Path) -> None:
    """One panel per axis, time against it, both logarithmic: a straight line at 45 degrees is proportional."""
    figure, panels = plt.subplots(1, len(AXES), figsize=(12, 3.6), layout="constrained")
    for panel, (axis, label) in zip(panels, AXES.items(), strict=True):
        sizes = series(growth, axis)
        for arm, (name, style) in LINES.items():
            measured = [(size[axis], size["median_ms"][arm]) for size in sizes if arm in size["median_ms"]]
            panel.plot(*zip(*measured, strict=True), style, label=name)
        panel.set(xscale="log", yscale="log", xlabel=label, ylabel="ms")
        ticks = [size[axis] for size in sizes]
        panel.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.suptitle(f"BERT of width {growth['width']}, {growth['threads']} threads")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
