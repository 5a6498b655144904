"""torchqx on a real GPU: right against references, then fast against others. ``python -m benchmarks.gpu --help``."""
