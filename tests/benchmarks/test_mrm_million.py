"""The rows that the benchmark of a million rows writes are those that the commands read."""

import numpy as np

from benchmarks import mrm_million
from jaxalign.data import load


def test_the_rows_can_be_read_and_have_features(tmp_path, monkeypatch):
    monkeypatch.setattr(mrm_million, "ITEMS", 20)
    mrm_million.write_rows(tmp_path, 3)
    table = load(tmp_path / "rows.jsonl", ratings=True)
    assert len(table.users) == 3
    assert len(table) == 3 * mrm_million.ROWS
    assert 0 < table.rating.sum() < len(table)
    assert table.scales == ((1.0, 5.0),)
    features = np.load(tmp_path / "features.npz")
    assert set(table.texts) <= set(features["ids"])
    assert features["features"].shape == (20, mrm_million.SIZE)
