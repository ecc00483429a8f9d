"""What a public function does at its edges: one entry a function, one probe a kind of edge.

A probe changes the arguments of an entry. What is expected then is the entry's independent
computation on the changed arguments, in float64 NumPy, or the sentence in `refused`, word for word.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import jax
import ml_dtypes
import numpy as np
import pytest

from jaxalign.errors import InputError

Arrays = dict[str, np.ndarray]
TYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float64": np.float64}


@dataclass(frozen=True)
class Entry:
    """A public function of arrays.

    Attributes:
        call: the function, of the arrays by name.
        arrays: small arguments; quarters, so that halves hold them exactly.
        reference: an independent computation of the same, in float64.
        live: the argument that probes poison, at its last place that counts.
        mask: the argument that says what counts.
        rows: arguments whose leading axis is cut by the probes of few rows.
        refused: probe -> the sentence that refuses it.
        skipped: probe -> why it does not apply.
        typed: arguments whose type probes change; all but masks by default.
        scaled: arguments that the scales multiply; `live` by default.
        tolerance: relative, of the largest expected number.
        least: difference that counts as none.
    """

    call: Callable[..., object]
    arrays: Arrays
    reference: Callable[..., object]
    live: str
    mask: str | None = None
    rows: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    typed: tuple[str, ...] | None = None
    scaled: tuple[str, ...] | None = None
    tolerance: float = 2e-5
    least: float = 0.0


def _poisoned(entry: Entry, value: float, masked: bool) -> Arrays:
    found = np.array(entry.arrays[entry.live], np.float64)
    if entry.mask is None:
        found[(-1,) * found.ndim] = value
    else:
        counted = np.broadcast_to(entry.arrays[entry.mask] > 0, found.shape[: _mask_axes(entry)])
        place = tuple(np.argwhere(counted != masked)[-1])
        found[(*place, ...)] = value
    return {entry.live: found}


def _mask_axes(entry: Entry) -> int:
    return entry.arrays[entry.mask].ndim


def _negative(entry: Entry) -> Arrays:
    found = np.array(entry.arrays[entry.mask], np.float64)
    found[(-1,) * found.ndim] = -1
    return {entry.mask: found}


def _cut(entry: Entry, count: int) -> Arrays:
    return {name: entry.arrays[name][:count] for name in entry.rows}


def _typed(entry: Entry, kind: type) -> Arrays:
    names = entry.typed or tuple(name for name in entry.arrays if name != entry.mask)
    return {name: entry.arrays[name].astype(kind) for name in names}


def _whole(entry: Entry) -> Arrays:
    found = _typed(entry, np.float64)
    return {name: np.rint(value).astype(np.int32) for name, value in found.items()}


def _strided(entry: Entry) -> Arrays:
    return {name: np.repeat(value, 2, axis=-1)[..., ::2] for name, value in entry.arrays.items()}


def _scaled(entry: Entry, factor: float) -> Arrays:
    return {name: entry.arrays[name] * factor for name in entry.scaled or (entry.live,)}


PROBES: dict[str, Callable[[Entry], Arrays]] = {
    "plain": lambda entry: {},
    "nan live": lambda entry: _poisoned(entry, np.nan, False),
    "infinity live": lambda entry: _poisoned(entry, np.inf, False),
    "nan masked": lambda entry: _poisoned(entry, np.nan, True),
    "infinity masked": lambda entry: _poisoned(entry, np.inf, True),
    "negative mask": _negative,
    "zero rows": lambda entry: _cut(entry, 0),
    "one row": lambda entry: _cut(entry, 1),
    "lists": lambda entry: {},
    "strided": _strided,
    "float16": lambda entry: _typed(entry, np.float16),
    "bfloat16": lambda entry: _typed(entry, ml_dtypes.bfloat16),
    "float64": lambda entry: _typed(entry, np.float64),
    "int": _whole,
    "wrong rank": lambda entry: {entry.live: entry.arrays[entry.live][None]},
    "scale 1e-8": lambda entry: _scaled(entry, 1e-8),
    "scale 1e8": lambda entry: _scaled(entry, 1e8),
}
OF_MASKS = {"nan masked", "infinity masked", "negative mask"}


def cases(table: Mapping[str, Entry]) -> list[tuple[str, str]]:
    """The function and probe of every case of a table."""
    return [
        (name, probe)
        for name, entry in table.items()
        for probe in PROBES
        if probe not in entry.skipped and (entry.mask or probe not in OF_MASKS)
    ]


def check(entry: Entry, probe: str) -> None:
    """Fail unless a probe of an entry gives its value or its sentence."""
    arrays = {**entry.arrays, **PROBES[probe](entry)}
    given: dict[str, object] = dict(arrays)
    if probe == "lists":
        given = {name: value.tolist() for name, value in arrays.items()}
    if probe in entry.refused:
        with pytest.raises(InputError) as refused:
            entry.call(**given)
        assert str(refused.value) == entry.refused[probe]
        return
    check_value(entry, arrays, given)


def check_value(entry: Entry, arrays: Arrays, given: Mapping[str, object]) -> None:
    """Fail unless an entry's function of what is given is the reference of the arrays."""
    found = jax.tree.leaves(entry.call(**given))
    # What counts is what the mask lets through: the reference never sees the rest.
    wide = {name: np.asarray(value, np.float64) for name, value in arrays.items()}
    expected = jax.tree.leaves(entry.reference(**wide))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        other = np.asarray(other)
        assert np.shape(one) == other.shape
        size = np.abs(other[np.isfinite(other)]).max(initial=0.0)
        near = entry.tolerance * size + entry.least
        np.testing.assert_allclose(
            np.asarray(one, np.float64), other, rtol=entry.tolerance, atol=near
        )


def refusals(
    live: str, place: str, axes: str, shape: str, mask: str | None = None, mask_place: str = ""
) -> dict[str, str]:
    """The sentences of `jaxalign.arrays` for an argument.

    Args:
        live: its name.
        place: of the value that is poisoned.
        axes: letters of its dimensions.
        shape: that it has in "wrong rank".
        mask: name of its mask.
        mask_place: the last place of the mask.
    """
    where = "finite numbers" if mask is None else "finite numbers where the mask is above 0"
    remedy = "correct it" if mask is None else "correct it, or set the mask to 0 there"
    count = len(axes.split())
    found = {
        probe: f"{live}[{place}] is {shown}; expected {where}: {remedy}."
        for probe, shown in (("nan live", "nan"), ("infinity live", "infinity"))
    }
    found["wrong rank"] = (
        f"{live}: found shape [{shape}], expected [{', '.join(axes.split())}]; give an array of "
        f"{count} {'axis' if count == 1 else 'axes'}."
    )
    if mask is not None:
        found["negative mask"] = (
            f"{mask}[{mask_place}] is -1; expected a finite weight of 0 or more: correct it, with "
            "0 for what does not count."
        )
    return found


def empty(name: str, shape: str, axes: str, letter: str) -> dict[str, str]:
    """The sentence of `jaxalign.arrays` for no rows."""
    return {
        "zero rows": f"{name}: found shape [{shape}], expected [{', '.join(axes.split())}] with "
        f"{letter} 1 or more; correct it."
    }
