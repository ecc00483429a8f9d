"""What pays on which device: the defaults of settings that change time and memory and no result."""

from dataclasses import dataclass

import jax


@dataclass(frozen=True)
class DeviceDefaults:
    """Defaults of one kind of device.

    Attributes:
        unstack_to_decode: whether models that only generate have one tree of parameters per layer
            (`jaxalign.models.layers`).
        unstack_to_train: whether frozen models of a training on one device have.
    """

    unstack_to_decode: bool = False
    unstack_to_train: bool = False


# A scanned stack is copied matrix by matrix at every pass: on a GPU a third of the memory traffic
# of decoding and a quarter of a LoRA step (benchmarks/results/h200_compiled). On a CPU, a training
# step of unstacked layers takes several times as long to compile.
DEFAULTS = {
    "cpu": DeviceDefaults(unstack_to_decode=True),
    "gpu": DeviceDefaults(unstack_to_decode=True, unstack_to_train=True),
}


def device_defaults() -> DeviceDefaults:
    """Return the defaults of the devices of this process; those of unknown ones change nothing.

    Example:
        >>> from jaxalign.models.device_defaults import device_defaults
        >>> device_defaults().unstack_to_decode in (True, False)
        True
    """
    return DEFAULTS.get(jax.default_backend(), DeviceDefaults())
