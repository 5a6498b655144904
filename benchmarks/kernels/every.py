"""All cases, by name."""

from benchmarks.kernels import few_rows, gated, int8_linear, rows, sequences

CASES = {case.name: case for case in (*int8_linear.cases(), *gated.cases(), *few_rows.cases(), *rows.cases(),
                                      *sequences.cases())}
