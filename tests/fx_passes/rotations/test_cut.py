"""Minimum cuts against every possible division."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchqx.fx_passes.rotations.cut import NEVER, Cut

PLACES = [Cut.START, "a", "b", "c", "d", Cut.END]
ARROWS = st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from(PLACES), st.integers(1, 9)), max_size=14)


def _cost(side: set, arrows: list) -> int:
    return sum(weight for a, b, weight in arrows if a in side and b not in side)


@given(ARROWS)
def test_cheapest_and_smallest(arrows: list) -> None:
    cut = Cut()
    for a, b, weight in arrows:
        cut.arrow(a, b, weight)
    side = cut.solve()
    sides = [{Cut.START, *inner} for n in range(5) for inner in itertools.combinations("abcd", n)]
    cheapest = min(_cost(s, arrows) for s in sides)
    assert _cost(side, arrows) == cheapest
    assert all(side <= s for s in sides if _cost(s, arrows) == cheapest)


def test_what_is_tied_stays_together() -> None:
    cut = Cut()
    cut.arrow(Cut.START, "a", 2)
    cut.tie("a", "b")
    cut.arrow("b", Cut.END, 3)
    assert cut.solve() == {Cut.START}
    cut.arrow(Cut.START, "b", 5)
    assert cut.solve() == {Cut.START, "a", "b"}


def test_what_is_tied_to_both_sides_has_no_cut() -> None:
    cut = Cut()
    cut.tie(Cut.START, "a")
    cut.arrow("a", Cut.END, NEVER)
    with pytest.raises(AssertionError, match="both sides"):
        cut.solve()
