"""The product of rows with a Hadamard matrix on tensor cores: templates for Inductor, which fuses what is around them.

One program holds BLOCK_M padded blocks. For each factor F, the innermost first, it multiplies the last dimension by F
and turns it to the front: after all factors every dimension has come round, and the product is complete.

    [m, a, b, c] · F_c -> [m, c, a, b] · F_b -> [m, b, c, a] · F_a -> [m, a, b, c]

Of a factor with fewer rows than tensor cores multiply by, copies on a diagonal multiply neighbours in one go.

A large first factor does not fit beside its operand: then one program holds (a part of) one block of the result, and
adds up F_aᵀ · ([a, b] · F_b) over slices of a.

Sums are float32. A float32 operand is a sum of bfloat16 parts, and +-1 is exact: one part is bfloat16 itself, two hold
16 bits, three all 24. So errors are those of float32 sums and, after 16-bit inputs, of 2^-17 where the third part is
left out; nothing depends on tf32, which not all tensor cores have.
"""

from typing import Any

from torch._inductor.select_algorithm import SymbolicGridFn, TritonTemplate

_MACROS = r"""
{%- macro factor(name, order, size, dense, repeated, i, j, indent) %}
{%- set pad = " " * indent %}
{%- if repeated %}
{{pad}}{{name}}_mask = ({{i}} ^ {{j}}) < {{order}}
{%- else %}
{{pad}}{{name}}_mask = ({{i}} < {{order}}) & ({{j}} < {{order}})
{%- endif %}
{%- if dense %}
{{pad}}{{name}} = tl.load(BASE + {{j if TRANSPOSE else i}} * {{order}} + {{i if TRANSPOSE else j}}, \
mask={{name}}_mask, other=0).to(tl.bfloat16)
{%- else %}
{{pad}}# -1 where i and j have an odd number of set bits in common; 0x6996 holds the parity of each four bits.
{{pad}}{{name}}_bits = {{i}} & {{j}}{{ " & %d" % (order - 1) if repeated else "" }}
{{pad}}{{name}}_odd = (0x6996 >> (({{name}}_bits ^ ({{name}}_bits >> 4)) & 15)) & 1
{{pad}}{{name}} = tl.where({{name}}_mask, 1 - 2 * {{name}}_odd, 0).to(tl.bfloat16)
{%- endif %}
{%- endmacro %}
{%- macro dot(sum, left, right, split, parts, start, indent) %}
{%- set pad = " " * indent %}
{%- for p in range(parts) %}
{{pad}}{{sum}}_part = {{split}}.to(tl.bfloat16)
{{pad}}{{sum}} = tl.dot({{left or sum + "_part"}}, {{right or sum + "_part"}}{{", " + sum if p or start else ""}})
{%- if not loop.last %}
{{pad}}{{split}} = {{split}} - {{sum}}_part.to(tl.float32)
{%- endif %}
{%- endfor %}
{%- endmacro %}
"""
_PLACE = r"""
{{def_kernel("X", *OPERANDS)}}
    row = tl.program_id(0).to(INDEX_DTYPE) * BLOCK_M + tl.arange(0, BLOCK_M).to(INDEX_DTYPE)
    lane = tl.program_id(2).to(INDEX_DTYPE) * WIDTH + tl.arange(0, WIDTH).to(INDEX_DTYPE)
    first = tl.program_id(1).to(INDEX_DTYPE) * ORDER
    idx_m = row[:, None]
    idx_n = (first + lane)[None, :]
    mask = (idx_m < {{size("X", 0)}}) & (lane < ORDER)[None, :]
"""
_WHOLE = r"""
    {{load_input("X", "x", ("idx_m", "idx_n"), mask="mask", indent_width=4, index_shape=("BLOCK_M", "WIDTH"))}}
    y = x.to(tl.float32)
{%- for order, size, dense, parts in FACTORS %}
{%- set n, repeated = loop.index, order < size and not loop.last %}
{%- set dimension = order if repeated else size %}
    i{{n}} = tl.arange(0, {{size}})[:, None]
    j{{n}} = tl.arange(0, {{size}})[None, :]
{{- factor("f" ~ n, order, size, dense, repeated, "i" ~ n, "j" ~ n, 4) }}
    y{{n}} = tl.reshape(y, (BLOCK_M * WIDTH // {{size}}, {{size}}))
{{- dot("sum" ~ n, none, "f" ~ n, "y" ~ n, parts, false, 4) }}
    turned{{n}} = tl.permute(tl.reshape(sum{{n}}, (BLOCK_M, WIDTH // {{dimension}}, {{dimension}})), (0, 2, 1))
    y = tl.reshape(turned{{n}}, (BLOCK_M, WIDTH))
{%- endfor %}
    y = y * SCALE
"""
_SLICES = r"""
{%- set inner, inner_size, _, inner_parts = FACTORS[0] %}
{%- set outer, outer_size, outer_dense, outer_parts = FACTORS[1] %}
    c = tl.arange(0, {{inner}})
{{- factor("f_inner", inner, inner, false, false, "c[:, None]", "c[None, :]", 4) }}
    to = tl.program_id(2) * (WIDTH // {{inner}}) + tl.arange(0, WIDTH // {{inner}})
    sums = tl.zeros((WIDTH // {{inner}}, {{inner}}), tl.float32)
    for start in range(0, {{outer}}, SLICE):
        a = start + tl.arange(0, SLICE)
        idx_k = first + (a[:, None] * {{inner}} + c[None, :]).to(INDEX_DTYPE)
        mask_k = (idx_m < {{size("X", 0)}}) & (a < {{outer}})[:, None]
        {{load_input("X", "x", ("idx_m", "idx_k"), mask="mask_k", indent_width=8,
                     index_shape=("SLICE", inner | string))}}
        y = x.to(tl.float32)
{{- dot("within", none, "f_inner", "y", inner_parts, false, 8) }}
{{- factor("f_outer", outer, outer_size, outer_dense, false, "a[None, :]", "to[:, None]", 8) }}
{{- dot("sums", "f_outer", none, "within", outer_parts, true, 8) }}
    y = tl.reshape(sums, (BLOCK_M, WIDTH)) * SCALE
"""
_RANGES = r"""
{%- if SHIFTED %}
    y = y - tl.load(SHIFT + lane, mask=lane < ORDER, other=0)[None, :]
{%- endif %}
{%- if SMOOTHED %}
    y = y * tl.load(SMOOTH + lane, mask=lane < ORDER, other=0)[None, :]
{%- endif %}
    high = tl.maximum(tl.max(y, 1), 0.0) * CLIP_RATIO
    low = tl.minimum(tl.min(y, 1), 0.0) * CLIP_RATIO
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
def _grid(rows: Any, columns: Any, meta: dict[str, Any], *, cdiv: Any) -> tuple[Any, Any, Any]:
    return cdiv(rows, meta["BLOCK_M"]), columns // meta["ORDER"], cdiv(meta["PADDED"], meta["WIDTH"])


# (does the first factor come in slices, is the result quantized per token) -> template
TEMPLATES = {
    (sliced, ranged): TritonTemplate(
        name=f"hadamard{'_slices' if sliced else ''}{'_per_token' if ranged else ''}", grid=_grid,
        source=_MACROS + _PLACE + (_SLICES if sliced else _WHOLE) + (_RANGES if ranged else "") + _STORE,
        prologue_loads_all_inputs=True)
    for sliced in (False, True) for ranged in (False, True)
}
