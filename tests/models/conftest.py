"""Caches that never touch the user's, and a tiny model on disk."""

from pathlib import Path

import pytest
from tiny_bert import write_model

from jaxalign.errors import InputError
from jaxalign.models.resolve import resolve


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    return tmp_path / "cache"


@pytest.fixture
def model_folder(tmp_path) -> Path:
    return write_model(tmp_path / "tiny")


@pytest.fixture(scope="session")
def smollm2():
    """The GGUF of SmolLM2-135M-Instruct, fetched as a user would."""
    try:
        return resolve("SmolLM2-135M-Instruct").weights[0]
    except InputError as error:
        pytest.skip(f"SmolLM2-135M-Instruct is not at hand: {error}")
