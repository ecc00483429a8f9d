"""What pays on which device: the defaults of settings that change time and memory and no result."""

import functools
from dataclasses import dataclass

from jaxalign.backend import program_backend
from jaxalign.progress import stderr_console


@dataclass(frozen=True)
class DeviceDefaults:
    """Defaults of one kind of device.

    Attributes:
        unstack_to_decode: whether models that only generate have one tree of parameters per layer
            (`jaxalign.models.layers`).
        unstack_to_train: whether frozen models of a training on one device have.
        unroll_to_train: whether a training on one device of all parameters, which are one stack,
            writes the layers out one after another in its program.
        training_options: names and values of options of the compiler, for the programs of a
            training, its rollouts included.
        slow_dtypes: of the compute, slower than float32.
    """

    unstack_to_decode: bool = False
    unstack_to_train: bool = False
    unroll_to_train: bool = False
    training_options: tuple[tuple[str, str], ...] = ()
    slow_dtypes: tuple[str, ...] = ()


# A scanned stack is copied matrix by matrix at every pass: on a GPU a third of the memory traffic
# of decoding and a quarter of a LoRA step, on paper. On a CPU, a LoRA step is faster by a few
# hundredths without the copies and compiles for twice as long, which the cache of compiled programs
# pays once.
DEFAULTS = {
    # XLA widens the operands of every product, whatever the CPU has.
    "cpu": DeviceDefaults(
        unstack_to_decode=True, unstack_to_train=True, slow_dtypes=("bfloat16", "float16")
    ),
    "gpu": DeviceDefaults(
        unstack_to_decode=True,
        unstack_to_train=True,
        # Without a loop over the layers, XLA copies none of them out of the stack: a step of all
        # parameters of 1B takes 14 % less time and 38 % less memory beside them, and compiles for
        # three times as long.
        unroll_to_train=True,
        # Products of an adapter joined with those of its matrix copy the matrix beside it, in a
        # rollout at every token: a LoRA step of 8B takes 9 % longer with them.
        training_options=(("xla_gpu_dot_merger_threshold_mb", "0"),),
    ),
}


def device_defaults() -> DeviceDefaults:
    """Return the defaults of the devices that programs are made for.

    Those of unknown devices change nothing.

    Example:
        >>> from jaxalign.models.device_defaults import device_defaults
        >>> device_defaults().unstack_to_decode in (True, False)
        True
    """
    return DEFAULTS.get(program_backend(), DeviceDefaults())


def training_options() -> dict[str, str] | None:
    """Return the compiler's options for the programs of a training, as `jax.jit` takes them."""
    return dict(device_defaults().training_options) or None


@functools.cache
def note_slow_dtype(dtype: str) -> None:
    """Say once, on standard error, that a compute dtype is slower than float32 on this device."""
    if dtype in device_defaults().slow_dtypes:
        stderr_console().print(
            f"{dtype} is computed in float32 on a {program_backend().upper()}, after "
            "conversions that make it slower: float32 is faster and takes twice the memory.",
            markup=False,
            soft_wrap=True,
        )
