"""Rows are written whatever stands in the columns that they carry along."""

import json
from datetime import UTC, datetime
from types import MappingProxyType

import pytest

from jaxalign.runs.row_file import json_line

CARRIED = (
    ("half of a surrogate pair \ud83d", "half of a surrogate pair \ud83d"),
    ("Zoë \u2028 🐙", "Zoë \u2028 🐙"),
    (datetime(2026, 3, 1, tzinfo=UTC), "2026-03-01 00:00:00+00:00"),
    (b"ab", "b'ab'"),
    (MappingProxyType({"role": "user"}), {"role": "user"}),
)


@pytest.mark.parametrize(("value", "found"), CARRIED)
def test_a_line_can_be_encoded_and_read(value, found):
    line = json_line({"prompt": "Zoë", "other": value})
    assert line.endswith("\n")
    assert line.encode().count(b"\n") == 1
    assert json.loads(line) == {"prompt": "Zoë", "other": found}


def test_readable_text_stays_readable():
    assert json_line({"prompt": "Zoë"}) == '{"prompt": "Zoë"}\n'
