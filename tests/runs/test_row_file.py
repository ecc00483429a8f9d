"""Rows are written whatever they carry along, and never over the rows of something else."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType

import pytest

from jaxalign.errors import InputError
from jaxalign.runs.row_file import json_line, open_row_file

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


@dataclass(frozen=True)
class Config:
    seed: int = 0


def write(path, kind, rows):
    file = open_row_file(path, kind, Config(), {"data": json.dumps(rows)})
    file.append(rows)
    file.finish()


def test_a_file_is_written_anew_by_its_own_command_only(tmp_path):
    path = tmp_path / "rows.jsonl"
    write(path, "reward score", [{"row": 0}])
    write(path, "reward score", [{"row": 1}])
    before = path.read_bytes()
    with pytest.raises(InputError, match="no run of `generate` has written what it holds"):
        write(path, "generate", [{"row": 2}])
    assert path.read_bytes() == before
    path.write_text("by hand\n")
    with pytest.raises(InputError, match="no run of `reward score` has written what it holds"):
        write(path, "reward score", [{"row": 3}])
    assert path.read_text() == "by hand\n"
