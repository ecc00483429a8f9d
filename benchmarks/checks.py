"""What the checks of public functions cost in jitted programs, beside the same without them.

A program is compiled twice: as it is, and with the checks of arguments and the cleaning of padding
taken out. Both run in turn in one process. XLA's own counts of operations and bytes stand beside
the times. It counts the body of a loop once, so programs are compiled once more to be counted, with
their loops unrolled: those of a known length in full, the others for a few turns that they always
take. What runs only where a result is not finite does not count. Two sides that are compiled to
the same program cost the same, whatever their times say.
"""

import argparse
import functools
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np

from benchmarks import harness

SIDES = ("checked", "unchecked")
LIMIT = 1.02  # most that a jitted program may cost of itself without checks
TURNS = 8  # of a loop without a known length: expectation propagation takes 10 at least


class Case(NamedTuple):
    """A function to be jitted, and its arguments."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--rounds", type=int, default=15, help="rounds in which all sides run")
    parser.add_argument("--seconds", type=float, default=0.1, help="of a side in a round")
    parser.add_argument("--only", nargs="+", default=[""], help="cases whose names begin so")


def run(arguments: argparse.Namespace) -> int:
    """Measures every case, and names those above the limit."""
    result = harness.started("checks", "float32", claim="The ratio of two programs of one run.")
    for name, make in CASES.items():
        if name.startswith(tuple(arguments.only)):
            harness.attempt(
                result, name, lambda n=name, m=make: _row(n, m(), arguments), arguments.out, _table
            )
    print(_table(result))
    return int(bool(result["failed"]))


def _row(name: str, case: Case, arguments: argparse.Namespace) -> dict[str, Any]:
    import jax

    compiled = {side: compile_side(case, side) for side in SIDES}
    same = jax.tree.map(
        lambda a, b: bool(np.allclose(a, b, rtol=1e-5, atol=1e-6)),
        *(jax.device_get(program(*case.arguments)) for program in compiled.values()),
    )
    if not all(jax.tree.leaves(same)):
        raise RuntimeError("the two sides give other numbers")
    sides = {
        side: lambda program=program: harness.wait(program(*case.arguments))
        for side, program in compiled.items()
    }
    timings = harness.measure(sides, arguments.rounds, arguments.seconds)
    ratios = {
        "time": timings["checked"].median / timings["unchecked"].median,
        "best time": timings["checked"].best / timings["unchecked"].best,
    }
    same_program = len({program_text(program) for program in compiled.values()}) == 1
    counts = {}
    if not same_program:
        counts = {side: count_work(compile_side(case, side, unrolled=True)) for side in SIDES}
        for count in ("flops", "bytes"):
            ratios[count] = counts["checked"][count] / counts["unchecked"][count]
    return harness.row(
        name, timings, "checked", counts=counts, ratios=ratios, same_program=same_program
    )


def compile_side(case: Case, side: str, unrolled: bool = False) -> Any:
    """One side of a case, compiled to be run, or with its loops unrolled to be counted."""
    import jax

    # Inner functions are jitted as well, and would be taken from the other side's trace.
    jax.clear_caches()
    with ExitStack() as stack:
        if side == "unchecked":
            stack.enter_context(_replaced(_PLAIN))
        if unrolled:
            stack.enter_context(_unrolled())
        return jax.jit(case.function).lower(*case.arguments).compile()


def count_work(program: Any) -> dict[str, float]:
    """XLA's counts of a compiled program's operations and of the bytes that it moves."""
    found = program.cost_analysis()
    return {"flops": found.get("flops", 0.0), "bytes": found.get("bytes accessed", 0.0)}


def program_text(program: Any) -> str:
    """The program without the places of the source that its instructions come from."""
    _, instructions = re.split(r"\n(?=%|ENTRY )", program.as_text(), maxsplit=1)
    return re.sub(r", metadata=\{[^}]*\}", "", instructions)


@contextmanager
def _replaced(replacements: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Put other functions in the place of those that check and clean, wherever they are used."""
    from jaxalign import arrays, padding

    defined = {**vars(padding), **vars(arrays)}
    own = {name: defined[name] for name in replacements}
    replaced = [
        (module, name)
        for module in list(sys.modules.values())
        if getattr(module, "__name__", "").startswith("jaxalign")
        for name, function in own.items()
        if getattr(module, name, None) is function
    ]
    for module, name in replaced:
        setattr(module, name, replacements[name])
    try:
        yield
    finally:
        for module, name in replaced:
            setattr(module, name, own[name])


@contextmanager
def _unrolled() -> Iterator[None]:
    """Unroll loops, but for that of a result which is not finite: only its test is counted."""
    import jax

    from jaxalign import padding

    own = jax.lax.scan, jax.lax.while_loop
    mended = padding._mended

    def scan(*rest: Any, **more: Any) -> Any:
        return own[0](*rest, **{**more, "unroll": True})

    def repeated(going: Any, step: Callable[[Any], Any], carry: Any) -> Any:
        for _ in range(TURNS):
            carry = step(carry)
        return carry

    def tested(result: Any, again: Any) -> Any:
        jax.lax.while_loop = own[1]
        try:
            return mended(result, lambda bad: bad.at[(0,) * bad.ndim].set(0))
        finally:
            jax.lax.while_loop = repeated

    jax.lax.scan, jax.lax.while_loop = scan, repeated
    try:
        with _replaced({"_mended": tested}):
            yield
    finally:
        jax.lax.scan, jax.lax.while_loop = own


def _converted(name: str, value: Any, *rest: Any, **more: Any) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(value).astype(jnp.promote_types(jnp.result_type(value), jnp.float32))


def _whole(name: str, value: Any, *rest: Any, **more: Any) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(value)


def _nothing(*rest: Any, **more: Any) -> None:
    return None


_PLAIN: Mapping[str, Callable[..., Any]] = {
    "check_array": _converted,
    "check_mask": _converted,
    "check_whole": _whole,
    "check_number": _nothing,
    "check_scale": _nothing,
    "kept": lambda mask, values: values,
    "over_kept": lambda function, mask, values, *others: function(values, mask, *others),
}


def _choices(users: int, pairs: int, width: int) -> tuple[Any, Any]:
    """Random choices [U, P, E], and weights of which a fifth are 0."""
    import jax.numpy as jnp

    rng = np.random.default_rng(0)
    differences = rng.standard_normal((users, pairs, width)).astype(np.float32)
    weight = (rng.random((users, pairs)) < 0.8).astype(np.float32)
    return jnp.asarray(differences), jnp.asarray(weight)


def _adapt(steps: int) -> Case:
    import jax

    from jaxalign import mrm

    config = mrm.MRMConfig(hidden_sizes=(8,), eval_steps=steps)
    params = mrm.init(jax.random.key(0), config, 256)
    differences, weight = _choices(4096, 16, 8)
    return Case(lambda p, d, m: mrm.adapt(p, d, m, config), (params, differences, weight))


def _served() -> Case:
    """Adaptation as `python -m benchmarks mrm` times it: features in, scores of others out."""
    import jax

    from benchmarks.mrm import served
    from jaxalign import mrm

    config = mrm.MRMConfig(hidden_sizes=(8,), eval_steps=1)
    params = mrm.init(jax.random.key(0), config, 256)
    given, weight = _choices(1024, 16, 256)
    return Case(served(config), (params, given, -given, weight))


def _epoch() -> Case:
    import jax
    import jax.numpy as jnp

    from jaxalign import mrm
    from jaxalign.data.batching import Pairs
    from jaxalign.mrm import train

    users, pairs, items = 1024, 16, 2000
    config = mrm.MRMConfig(hidden_sizes=(8,), users_per_batch=64)
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.standard_normal((items, 256)), jnp.float32)
    chosen, rejected = (jnp.asarray(rng.integers(0, items, (users, pairs))) for _ in range(2))
    _, weight = _choices(users, pairs, 1)
    choices = Pairs(chosen, rejected, weight, jnp.zeros((users, pairs), jnp.int32))
    states = train.init_states(jax.random.split(jax.random.key(0), 1), config, 256, users)
    table = train.item_table(features, choices, config)

    def epoch(states: Any, table: Any) -> Any:
        after, losses = train.epochs(states, table, choices, config, 1, 1)
        return after.params, losses

    return Case(epoch, (states, table))


def _prior(width: int) -> Any:
    import jax.numpy as jnp

    from jaxalign import mrm

    return mrm.Prior(jnp.zeros(width), jnp.eye(width))


def _posterior() -> Case:
    from jaxalign import mrm

    return Case(mrm.posterior, (_prior(32), *_choices(256, 16, 32)))


def _predict() -> Case:
    from jaxalign import mrm

    differences, weight = _choices(256, 16, 32)
    function = functools.partial(mrm.predict, chunk=len(weight))
    return Case(function, (_prior(32), differences, weight, differences))


def _em_step() -> Case:
    """One step of `fit_prior`."""
    from jaxalign.mrm import population
    from jaxalign.mrm.config import BayesConfig

    buckets = (population.choices_of(*_choices(256, 16, 32)),)
    sites, config = population.no_sites(buckets), BayesConfig()
    return Case(
        lambda prior, b, s: population.em_step(prior, b, s, 100.0, config),
        (_prior(32), buckets, sites),
    )


def _bradley_terry() -> Case:
    from jaxalign import mrm

    return Case(mrm.bradley_terry, _choices(1024, 16, 32))


def _rpo() -> Case:
    from jaxalign import mrm

    losses = _choices(4096, 1, 1)[0].reshape(-1)
    return Case(lambda values: mrm.rpo(values, 0.5, 0.5), (losses,))


def _combine() -> Case:
    from jaxalign import moc

    directions, _ = _choices(4, 8, 4096)
    config = moc.CombineConfig()
    return Case(lambda d, s: moc.combine(d, s, config), (directions[:3], directions[3]))


def _aggregate() -> Case:
    import jax

    from jaxalign import pplug

    config = pplug.PersonaConfig()
    params = pplug.init_persona(jax.random.key(0), config, 64, 256, 2.0)
    history, weight = _choices(256, 16, 64)

    def personas(params: Any, queries: Any, items: Any, mask: Any) -> Any:
        one = jax.vmap(lambda q, h, m: pplug.aggregate(params, q, h, m, config))
        return one(queries, items, mask)

    return Case(personas, (params, history[:, 0], history, weight > 0))


CASES: Mapping[str, Callable[[], Case]] = {
    "adapt, 1 step": lambda: _adapt(1),
    "adapt, 10 steps": lambda: _adapt(10),
    "adapt, served": _served,
    "epoch of meta-training": _epoch,
    "posterior": _posterior,
    "predict": _predict,
    "step of fit_prior": _em_step,
    "bradley_terry": _bradley_terry,
    "rpo": _rpo,
    "combine": _combine,
    "aggregate": _aggregate,
}


_LEAD = f"""Median times of jitted programs with the checks of arguments and the cleaning of padding
(checked), and without both (unchecked). The other columns are ratios of checked to unchecked, bold
above the limit of {LIMIT}. Operations and bytes are XLA's counts of programs with unrolled loops,
{TURNS} turns where a loop has no known length; a second run with clean padding, which only a result
that is not finite needs, is left out. Two sides that compile to the same program have no ratios.

"""


def _table(result: dict[str, Any]) -> str:
    header = ["", *SIDES, "time", "best time", "operations", "bytes"]
    text = _LEAD + harness.table(header, [_line(row) for row in result["rows"]])
    return text + "".join(f"\n{row['name']} failed: {row['why']}\n" for row in result["failed"])


def _line(row: dict[str, Any]) -> list[str]:
    medians = [harness.shown(row["seconds"][side]["median"]) for side in SIDES]
    if row["same_program"]:
        return [row["name"], *medians, "the same program", *[""] * 3]
    ratios = [row["ratios"][name] for name in ("time", "best time", "flops", "bytes")]
    shown = [f"**{ratio:.3f}**" if ratio > LIMIT else f"{ratio:.3f}" for ratio in ratios]
    return [row["name"], *medians, *shown]
