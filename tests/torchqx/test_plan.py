"""Site records as data."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchqx.errors import CheckpointError
from torchqx.plan import SiteRecord, records_from_json, records_to_json

records = st.builds(
    SiteRecord, st.text(max_size=20), st.sampled_from(["linear", "norm"]), st.sampled_from(["quantized", "float"]),
    reason=st.text(max_size=20), operations=st.lists(st.text(max_size=5), max_size=3),
    loss=st.none() | st.floats(0, 1e6), errors=st.dictionaries(st.text(max_size=5), st.floats(0, 1), max_size=2),
    bytes_before=st.integers(0, 2**40))


@given(st.lists(records, max_size=4))
def test_round_trip(some: list[SiteRecord]) -> None:
    assert records_from_json(records_to_json(some)) == some


@pytest.mark.parametrize("text", [
    "", "{", "{}", "3", "null", "[3]", "[[]]", '[{"key": "a", "kind": "linear"}]',
    '[{"key": "a", "kind": "linear", "status": "float", "more": 1}]',
])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match="Remedy"):
        records_from_json(text)


def test_plain_data() -> None:
    record = SiteRecord("a:linear:0", "linear", "float", reason="r")
    assert SiteRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record
