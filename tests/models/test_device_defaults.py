"""What pays on which device, and what is said where a setting does not."""

import jax
import pytest

from jaxalign.models import device_defaults
from jaxalign.train.trunk import TrunkConfig


@pytest.fixture
def quiet():
    device_defaults.note_slow_dtype.cache_clear()
    yield
    device_defaults.note_slow_dtype.cache_clear()


def test_bfloat16_on_a_cpu_is_noted_once(quiet, capsys):
    for _ in range(2):
        device_defaults.note_slow_dtype("bfloat16")
    device_defaults.note_slow_dtype("float32")
    text = capsys.readouterr().err
    assert text.startswith("bfloat16 is computed in float32 on a CPU")
    assert text.count(chr(10)) == 1


def test_every_default_is_one_that_the_compiler_and_the_configs_know(monkeypatch):
    for kind, defaults in device_defaults.DEFAULTS.items():
        monkeypatch.setattr(jax, "default_backend", lambda kind=kind: kind)
        assert device_defaults.device_defaults() == defaults
        assert device_defaults.training_options() == (dict(defaults.training_options) or None)
        TrunkConfig(unstack_layers=defaults.unstack_to_train)
    monkeypatch.setattr(jax, "default_backend", lambda: "another")
    assert device_defaults.device_defaults() == device_defaults.DeviceDefaults()
