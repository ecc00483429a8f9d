"""What `generate` refuses at the door: sizes that do not fit each other, or the context."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import InputError
from jaxalign.models import families
from jaxalign.models.decoder import Adapters
from jaxalign.models.params import Array
from jaxalign.models.sampling import Sampling

if TYPE_CHECKING:
    from jaxalign.models.generate import PolicyMixture, Prompt


def check(
    config: families.Config,
    prompt: "Prompt",
    key: jax.Array,
    settings: Sampling,
    adapters: Adapters,
    rows: Array | None,
    combine: "PolicyMixture",
) -> None:
    """Refuses what would fail inside the program, or be wrong without failing."""
    if np.ndim(prompt.tokens) != 2 or 0 in np.shape(prompt.tokens)[:1]:
        raise InputError(f"tokens have shape {np.shape(prompt.tokens)}; expected [B, T], B > 0.")
    batch, length = np.shape(prompt.tokens)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise InputError(f"key is an array of {key.dtype}; expected keys of jax.random.key.")
    soft = 0 if prompt.prefix is None else np.shape(prompt.prefix)[1]
    stack = _stack_size(adapters)
    expected: dict[str, tuple[Array | None, list[tuple[int, ...]]]] = {
        "key": (key, [(), (batch,)]),
        "lengths": (prompt.lengths, [(batch,)]),
        "prefix": (prompt.prefix, [(batch, soft, config.width)]),
        "prefix_lengths": (prompt.prefix_lengths, [(batch,)]),
        "prefix_starts": (prompt.prefix_starts, [(batch,)]),
        "rows": (rows, [(batch,)] if stack is None else [(batch,), (batch, stack)]),
    }
    policies = 1
    if combine.rows is not None:
        expected["combine.rows"] = (combine.rows, [(batch, *np.shape(combine.rows)[1:2])])
        policies = np.shape(combine.rows)[1] if np.ndim(combine.rows) == 2 else 1
    expected["combine.weights"] = (combine.weights, [(batch, policies + len(combine.others))])
    for name, (value, shapes) in expected.items():
        if value is not None and np.shape(value) not in shapes:
            raise InputError(
                f"{name} has shape {np.shape(value)}; expected {' or '.join(map(str, shapes))}."
            )
    if combine.weights is None and (combine.rows is not None or combine.others):
        raise InputError(
            "combine.weights is None beside combine.rows or combine.others; expected [B, C] "
            "weights of the policies that are mixed: give them."
        )
    if combine.weights is not None and not np.isfinite(np.asarray(combine.weights)).all():
        raise InputError(
            f"combine.weights are {np.asarray(combine.weights).tolist()}; expected finite numbers: "
            "correct them."
        )
    if combine.rows is not None and rows is not None:
        raise InputError("rows and combine.rows are both given; expected one of them.")
    chosen = combine.rows if rows is None else rows
    if (stack is None) != (chosen is None):
        raise InputError(
            f"found {'a stack' if stack else 'no stack'} of adapters and "
            f"{'rows' if chosen is not None else 'no rows'}; expected both or neither: see "
            "jaxalign.models.lora.stack."
        )
    if stack is not None and chosen is not None:
        _check_rows(chosen, stack, weighted=rows is not None and np.ndim(rows) == 2)
    for other, _ in combine.others:
        if other.vocab_size != config.vocab_size or (soft and other.width != config.width):
            raise InputError(
                f"a model of vocabulary {other.vocab_size} and width {other.width} is mixed with "
                f"one of {config.vocab_size} and {config.width}; expected the same vocabulary, "
                "and with soft prefixes the same width."
            )
    _check_lengths(config, prompt, settings, combine, soft, length)


def check_lengths(count: int, given: Mapping[str, Array | Sequence[float] | None]) -> None:
    """Refuses arguments that do not have one entry for each of `count` prompts; None is none."""
    for name, value in given.items():
        if value is not None and np.shape(value)[:1] != (count,):
            raise InputError(
                f"{name} has shape {np.shape(value)}; expected one entry for each of {count} "
                "prompts: correct it."
            )


def _check_rows(rows: Array, stack: int, weighted: bool) -> None:
    found = np.asarray(rows)
    if weighted and not (np.issubdtype(found.dtype, np.floating) and np.isfinite(found).all()):
        raise InputError(
            f"rows of shape {found.shape} weigh adapters; expected finite floats, found "
            f"{found.dtype} {np.ravel(found)}."
        )
    if not weighted and (found.max() >= stack or found.min() < -1):
        raise InputError(f"rows name adapters from -1 to {stack - 1}; found {np.ravel(found)}.")


def _check_lengths(
    config: families.Config,
    prompt: "Prompt",
    settings: Sampling,
    combine: "PolicyMixture",
    soft: int,
    length: int,
) -> None:
    lengths = np.asarray(prompt.lengths)
    firsts = np.full_like(lengths, soft)
    if prompt.prefix is not None and prompt.prefix_lengths is not None:
        firsts = np.asarray(prompt.prefix_lengths)
    for name, found, most in (("lengths", lengths, length), ("prefix_lengths", firsts, soft)):
        if (found < 0).any() or (found > most).any():
            raise InputError(f"{name} are {found}; expected numbers from 0 to {most}.")
    if prompt.prefix_starts is not None:
        begins = np.asarray(prompt.prefix_starts)
        if (begins < 0).any() or (begins > lengths).any():
            raise InputError(
                f"prefix_starts are {begins}; expected numbers from 0 to the lengths, {lengths}."
            )
    limit = min(other.positions for other in (config, *(other for other, _ in combine.others)))
    totals = lengths + firsts + settings.max_tokens
    row = int(np.argmax(totals))
    if totals[row] > limit:
        raise InputError(
            f"row {row} has {lengths[row] + firsts[row]} tokens, and {settings.max_tokens} may be "
            f"drawn; the model has room for {limit}: shorten the prompt, or lower max_tokens."
        )


def _stack_size(adapters: Adapters) -> int | None:
    """How many adapters a stack has; None for one adapter or none at all."""
    leaves = jax.tree.leaves(adapters)
    return int(leaves[0].shape[1]) if leaves and leaves[0].ndim == 4 else None
