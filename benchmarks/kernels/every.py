"""All cases, by name."""

from benchmarks.kernels import int8_linear, rows, sequences

CASES = {case.name: case for case in (*int8_linear.cases(), *rows.cases(), *sequences.cases())}
