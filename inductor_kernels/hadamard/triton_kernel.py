"""The product of rows with a Hadamard matrix on tensor cores: templates for Inductor, which fuses what is around them.

One program holds BLOCK_M padded blocks. For each factor F, the innermost first, it multiplies the last dimension by F and
turns it to the front: after all factors every dimension has come round, and the product is complete.

    [m, a, b, c] · F_c -> [m, c, a, b] · F_b -> [m, b, c, a] · F_a -> [m, a, b, c]

Sums are float32. A float32 operand is a sum of bfloat16 parts, and +-1 is exact: one part is bfloat16 itself, two hold 16
bits, three all 24. So errors are those of float32 sums and, after 16-bit inputs, of 2^-17 where the third part is left
out; nothing depends on tf32, which not all tensor cores have.
"""

from torch._inductor.select_algorithm import SymbolicGridFn, TritonTemplate

_LOAD = r"""
    row = tl.program_id(0).to(INDEX_DTYPE) * BLOCK_M + tl.arange(0, BLOCK_M).to(INDEX_DTYPE)
    lane = tl.arange(0, WIDTH).to(INDEX_DTYPE)
    idx_m = row[:, None]
    idx_n = (tl.program_id(1).to(INDEX_DTYPE) * ORDER + lane)[None, :]
    mask = (idx_m < {{size("X", 0)}}) & (lane < ORDER)[None, :]
    {{load_input("X", "x", ("idx_m", "idx_n"), mask="mask", indent_width=4, index_shape=("BLOCK_M", "WIDTH"))}}
    y = x.to(tl.float32)
"""
_MULTIPLY = r"""
{%- for order, size, dense, parts in FACTORS %}
{%- set n = loop.index %}
    i{{n}} = tl.arange(0, {{size}})[:, None]
    j{{n}} = tl.arange(0, {{size}})[None, :]
    inside{{n}} = (i{{n}} < {{order}}) & (j{{n}} < {{order}})
{%- if dense %}
    f{{n}} = tl.load(BASE + {{"j" if TRANSPOSE else "i"}}{{n}} * {{order}} + {{"i" if TRANSPOSE else "j"}}{{n}}, \
mask=inside{{n}}, other=0)
{%- else %}
    # -1 where i and j have an odd number of set bits in common; 0x6996 holds the parity of each four bits.
    both{{n}} = i{{n}} & j{{n}}
    f{{n}} = tl.where(inside{{n}}, 1 - 2 * ((0x6996 >> ((both{{n}} ^ (both{{n}} >> 4)) & 15)) & 1), 0)
{%- endif %}
    f{{n}} = f{{n}}.to(tl.bfloat16)
    rest{{n}}_1 = tl.reshape(y, (BLOCK_M * WIDTH // {{size}}, {{size}}))
    part{{n}}_1 = rest{{n}}_1.to(tl.bfloat16)
    sum{{n}} = tl.dot(part{{n}}_1, f{{n}})
{%- for p in range(2, parts + 1) %}
    rest{{n}}_{{p}} = rest{{n}}_{{p - 1}} - part{{n}}_{{p - 1}}.to(tl.float32)
    part{{n}}_{{p}} = rest{{n}}_{{p}}.to(tl.bfloat16)
    sum{{n}} = tl.dot(part{{n}}_{{p}}, f{{n}}, sum{{n}})
{%- endfor %}
    turned{{n}} = tl.permute(tl.reshape(sum{{n}}, (BLOCK_M, WIDTH // {{size}}, {{size}})), (0, 2, 1))
    y = tl.reshape(turned{{n}}, (BLOCK_M, WIDTH))
{%- endfor %}
    y = y * SCALE
"""
_RANGES = r"""
{%- if SHIFTED %}
    y = y - tl.load(SHIFT + lane, mask=lane < ORDER, other=0)[None, :]
{%- endif %}
{%- if SMOOTHED %}
    y = y * tl.load(SMOOTH + lane, mask=lane < ORDER, other=0)[None, :]
{%- endif %}
    high = tl.maximum(tl.max(y, 1), 0.0)
    low = tl.minimum(tl.min(y, 1), 0.0)
{%- if SYMMETRIC %}
    scale = tl.maximum(tl.maximum(high, -low) * (2 / (QMAX - QMIN)), SMALLEST_SCALE)
    zero = tl.full((BLOCK_M,), {{(QMIN + QMAX) // 2}}, tl.float32)
{%- else %}
    scale = tl.maximum((high - low) * (1 / (QMAX - QMIN)), SMALLEST_SCALE)
    zero = tl.minimum(tl.maximum(libdevice.nearbyint(QMIN - low / scale), QMIN), QMAX)
{%- endif %}
    y = libdevice.nearbyint(y * (1 / scale)[:, None]) + zero[:, None]
    y = tl.minimum(tl.maximum(y, QMIN), QMAX)
    tl.store(SCALES + row, scale, mask=row < {{size("X", 0)}})
    tl.store(ZEROS + row, zero.to(tl.int32), mask=row < {{size("X", 0)}})
"""
_STORE = r"""
    {{store_output(("idx_m", "idx_n"), "y", "mask", val_shape=("BLOCK_M", "WIDTH"))}}
"""


@SymbolicGridFn
def _grid(rows, columns, meta, *, cdiv):
    return (cdiv(rows, meta["BLOCK_M"]), columns // meta["ORDER"], 1)


def _template(name: str, source: str) -> TritonTemplate:
    return TritonTemplate(name=name, grid=_grid, source=source, prologue_loads_all_inputs=True)


PRODUCT = _template("hadamard", "{{def_kernel('X', *OPERANDS)}}" + _LOAD + _MULTIPLY + _STORE)
PER_TOKEN = _template("hadamard_per_token",
                      "{{def_kernel('X', *OPERANDS)}}" + _LOAD + _MULTIPLY + _RANGES + _STORE)
