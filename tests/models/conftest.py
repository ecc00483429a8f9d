"""Caches that never touch the user's, and a tiny model on disk."""

from pathlib import Path

import pytest
from tiny_bert import write_model


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    return tmp_path / "cache"


@pytest.fixture
def model_folder(tmp_path) -> Path:
    return write_model(tmp_path / "tiny")
