"""What pays on which device, and what is said where a setting does not."""

import jax
import pytest

from jaxalign.backend import programs_for
from jaxalign.models import device_defaults, families
from jaxalign.train.mesh import MeshConfig, make_mesh
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


@pytest.mark.parametrize(("kind", "unrolls"), [("gpu", True), ("cpu", False), ("tpu", False)])
def test_all_parameters_are_trained_unrolled_on_one_gpu(kind, unrolls):
    model = families.DecoderConfig("llama", 7, 8, 2, 2, 2, 4, 16, 32)
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    two = jax.sharding.AbstractMesh((2, 1, 1), one.axis_names)
    with programs_for(kind):
        full = TrunkConfig(method="full")
        assert full.decoder(model, one).unroll == unrolls
        # What generates, what is cut over devices, and an adapter's frozen layers stay as they are.
        assert not full.decoder(model).unroll
        assert not full.decoder(model, two).unroll
        assert not TrunkConfig().decoder(model, one).unroll
