"""What the cost model says for given rates."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchqx.cost_model import MARGIN, Choice, Matmuls, Rates, choose

RATES = Rates(
    rows=(1, 4, 16),
    matmul={"packed": (1.0, 1.0, 2.0), "bfloat16": (2.0, 2.0, 8.0), "float32": (4.0, 4.0, 32.0),
            "integer": (1.0, 1.0, 2.0), "group": (4.0, 4.0, 8.0), "bfloat16 weight only": (3.0, 3.0, 9.0),
            "bfloat16 weight only grouped": (30.0, 30.0, 36.0)},
    call=dict.fromkeys(("bfloat16", "float32", "bfloat16 weight only", "bfloat16 weight only grouped"), 100.0)
    | dict.fromkeys(("packed", "integer", "group"), 500.0),
    byte=0.0,
)
M = Matmuls(rows=4, k=100, columns=(63,), dtype="bfloat16", kernel="packed", groups=1, dynamic=False,
            grouped=False)


def test_time_between_and_beyond_what_was_measured() -> None:
    assert RATES.seconds("packed", 1, 10) == 500 + 10
    assert RATES.seconds("packed", 10, 10) == 500 + 10 * 1.5
    assert RATES.seconds("packed", 16, 10) == 500 + 10 * 2
    assert RATES.seconds("packed", 160, 10) == 500 + 10 * 20


def test_integers_where_they_pay() -> None:
    choice = choose(RATES, M, keeps_float=True)
    assert choice == Choice("int8", pytest.approx((100 + 2 * 6300) / (500 + 6300)))
    assert str(choice) == "int8, expected gain 1.9x"


def test_a_call_costs_too_much_for_a_small_weight() -> None:
    small = replace(M, k=5, columns=(5,))
    choice = choose(RATES, small, keeps_float=True)
    assert choice.lowering == "float"
    assert str(choice) == "float: int8 does not pay (0.3x)"
    assert choose(RATES, small, keeps_float=False).lowering == "int8", "nothing else keeps the memory"


def test_matmuls_side_by_side_pay_one_call() -> None:
    apart, together = replace(M, k=10, columns=(10,)), replace(M, k=10, columns=(10,) * 20)
    assert choose(RATES, apart, keeps_float=True).lowering == "float"
    assert choose(RATES, together, keeps_float=True).lowering == "int8"


def test_many_groups_leave_the_weight_alone_in_integers() -> None:
    grouped = replace(M, kernel="general", k=128, groups=2, dynamic=True)
    assert choose(RATES, grouped, keeps_float=False).lowering == "weight only"
    assert choose(RATES, grouped, keeps_float=True).lowering == "float"
    assert choose(RATES, replace(grouped, kernel="plain"), keeps_float=True).lowering == "int8"
    assert choose(RATES, replace(grouped, grouped=True), keeps_float=False).lowering == "int8", "weight only is as slow"


def test_quantizing_rows_at_run_time_costs_passes() -> None:
    slow = replace(RATES, byte=10.0)
    assert choose(slow, M, keeps_float=True).lowering == "int8"
    assert choose(slow, replace(M, dynamic=True), keeps_float=True).lowering == "float"


@given(st.integers(1, 4096), st.integers(1, 8192), st.lists(st.integers(1, 8192), min_size=1, max_size=3),
       st.sampled_from(["packed", "plain", "general"]), st.booleans(), st.booleans(), st.booleans())
def test_never_slower_than_float_where_float_may_be_kept(rows: int, k: int, columns: list[int], kernel: str,
                                                         dynamic: bool, grouped: bool, keeps_float: bool) -> None:
    m = Matmuls(rows, k, tuple(columns), "bfloat16", kernel, 2 if kernel == "general" else 1, dynamic, grouped)
    choice = choose(RATES, m, keeps_float)
    if keeps_float and choice.lowering == "int8":
        assert choice.gain * MARGIN >= 1
    if choice.lowering == "float":
        assert keeps_float
        assert choice.gain < 1
