"""The benchmark of the service runs, and its table has a line for every figure."""

import argparse
import json

import pytest

from benchmarks import serve
from jaxalign.errors import InputError


def options(tmp_path, *words):
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default=tmp_path)
    serve.add_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.slow
def test_a_small_benchmark_measures_everything(tmp_path):
    words = "--requests 20 --seconds 0.2 --feedbacks 20 --memory 100 --rows 10 100"
    assert serve.run(options(tmp_path, *words.split())) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["feedback"].keys() == {"10", "100"}
    assert all(rate > 0 for rate in result["throughput"].values())
    assert result["memory"]["requests"] == 100
    assert result["machines"].keys() == {"latency", "feedback", "memory"}
    table = (tmp_path / "table.md").read_text()
    assert all(
        name in table for name in ("`plain`", "`member`", "`best_of`", "100 rows", "Resident")
    )


def test_a_result_of_some_parts_keeps_the_others(tmp_path, monkeypatch):
    async def measured(arguments, result):
        result["memory"] = {"requests": 100, "first": 1.0, "half": 1.0, "last": 1.0}

    known = {"feedback": {"10": {"median": 7.0, "p99": 12.5}}, "machines": {"feedback": "before"}}
    (tmp_path / "result.json").write_text(json.dumps({**known, "other": 1}))
    monkeypatch.setattr(serve, "_measure", measured)
    assert serve.run(options(tmp_path, "--parts", "memory")) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["feedback"] == known["feedback"]
    assert result["machines"].keys() == {"feedback", "memory"}
    assert "other" not in result
    table = (tmp_path / "table.md").read_text()
    assert "12.5" in table
    assert "over 100 requests" in table


def test_too_few_requests_for_a_percentile_are_refused(tmp_path):
    with pytest.raises(InputError, match="--requests: found 5, expected 20 or more"):
        serve.run(options(tmp_path, "--requests", "5"))
