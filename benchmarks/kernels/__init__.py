"""CPU kernels on real sizes, each beside what else could do its work: ``make bench-kernels``, ``make bench-check``."""
