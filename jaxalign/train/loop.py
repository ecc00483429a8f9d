"""The loop around a step: batches in, metrics out, judged, kept, resumed to the same bits."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np

from jaxalign.config import on_resume
from jaxalign.config_fields import checks_fields
from jaxalign.errors import InputError
from jaxalign.models.device_defaults import training_options
from jaxalign.models.params import PyTree
from jaxalign.runs.log import Check, MetricsLog, Tracker, Where
from jaxalign.runs.stop import stop_request
from jaxalign.train.announce import announce
from jaxalign.train.batches import Batches
from jaxalign.train.checkpoint import BestParams, Checkpoints
from jaxalign.train.failures import describe_last_state, guarded_step, memory_refusal
from jaxalign.train.optimiser import OptimiserConfig, TrainState
from jaxalign.train.step import Loss, make_judge, make_step

_SHOWN = 8  # rows of a step that a message names
# Rows (-1 for none) and a width -> arrays [B, ...].
Assemble = Callable[[np.ndarray, int], Mapping[str, np.ndarray]]
# Parameters and checkpoints -> means over the validation rows, and where one is not finite.
Judge = Callable[[PyTree, Checkpoints | None], tuple[dict[str, float], Where]]


@dataclass(frozen=True)
@checks_fields
class LoopConfig:
    """Length of a training run, its batches, and when it validates and writes checkpoints.

    Attributes:
        epochs: passes over the training rows, at least 1. 1 to 3 is usual for fine-tuning. More
            of them, with --resume, make a run longer, finished or not.
        batch_size: rows of one update, at least 1.
        micro_batches: parts of a batch that are computed one after another, at least 1 and a
            divisor of batch_size. Raise it, in a new folder, if memory runs out: the update stays
            the same but for rounding and for what is drawn while training, such as dropout.
        evaluate_every: steps between two validations, at least 1; the last step has one too.
        checkpoint_every: steps between two checkpoints, at least 1. A stopped run resumes from the
            last one and loses the steps after it.
        seed: of the order of rows, of fresh parameters and of dropout, at least 0.
        trackers: where metrics are sent beside metrics.jsonl: "tensorboard", "trackio" or "wandb",
            each installed separately; empty for nowhere else.

    Example:
        >>> from jaxalign.train.loop import LoopConfig
        >>> LoopConfig(epochs=1, batch_size=16, micro_batches=4).evaluate_every
        100
    """

    epochs: int = on_resume("more", 3)
    batch_size: int = 32
    micro_batches: int = 1
    evaluate_every: int = 100
    checkpoint_every: int = on_resume("any", 100)
    seed: int = 0
    trackers: tuple[Tracker, ...] = on_resume("any", ())

    def __post_init__(self) -> None:
        counts = {
            name: getattr(self, name)
            for name in (
                "epochs", "batch_size", "micro_batches", "evaluate_every", "checkpoint_every"
            )
        }  # fmt: skip
        for name, count in counts.items():
            if count < 1:
                raise InputError(f"{name} is {count}; expected at least 1.")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}; expected at least 0.")
        if self.batch_size % self.micro_batches:
            raise InputError(
                f"batch_size {self.batch_size} does not split into {self.micro_batches} "
                "micro_batches; expected a divisor."
            )


@dataclass(frozen=True)
class Rows:
    """Rows to train or to judge on.

    Attributes:
        lengths: [N] tokens of each, which choose its bucket.
        assemble: padded arrays of some rows; a missing row must weigh nothing.
        widest: the most tokens that a batch is padded to, where the model takes no more.
    """

    lengths: np.ndarray
    assemble: Assemble
    widest: int | None = None


@dataclass(frozen=True)
class LoopResult:
    """What a training loop returns.

    Attributes:
        params: of the step with the lowest validation loss, or of the last step without validation.
        best_step: the step that `params` are of.
        validation: means over the validation rows at that step; empty without validation rows.
        validation_before: the same before the first step.
        steps: how many steps were taken in all.
    """

    params: PyTree
    best_step: int
    validation: dict[str, float]
    validation_before: dict[str, float]
    steps: int


def fit(
    state: TrainState,
    frozen: PyTree,
    loss: Loss,
    train: Rows,
    validation: Rows | None,
    config: LoopConfig,
    optimiser: OptimiserConfig,
    folder: Path,
    say: Callable[[str], None],
    sharding: jax.sharding.NamedSharding | None = None,
    *,
    rates: Mapping[str, float] | None = None,
    check: Check | None = None,
) -> LoopResult:
    """Train to the last step, going on from the newest state in the folder.

    The result depends on neither the interruptions nor when states are kept. Each width of batch
    is compiled once. At Ctrl-C and SIGTERM the state is kept before the run is left.

    Args:
        state: before the first step; given up.
        frozen: what the loss needs beside the trained parameters.
        loss: sums over a micro-batch, see `jaxalign.train.step`.
        train: rows to learn.
        validation: rows to judge by, or None.
        config: epochs, batches and intervals.
        optimiser: rate and schedule.
        folder: for metrics.jsonl, and states under state/.
        say: where progress goes.
        sharding: of the micro-batches' rows over devices.
        rates: as in `optimiser.apply`.
        check: as in `MetricsLog.add`, called with the metrics of every step.

    Returns:
        The best parameters and how they did.

    Raises:
        InputError: when a metric stops being finite, the device has too little memory, or the
            state in the folder is another run's. The message names the step, its rows and the last
            state that is kept. A step that fails before it changes the state leaves the state
            before it.
        KeyboardInterrupt: at Ctrl-C, when the state is kept.
    """
    (folder / "state").mkdir(parents=True, exist_ok=True)
    check_batch(config, sharding)
    batches = Batches(train.lengths, config.batch_size, config.seed, widest=train.widest)
    steps = config.epochs * len(batches)
    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = announce(
        "the training step",
        jax.jit(
            make_step(loss, optimiser, steps, rates),
            donate_argnums=0,
            out_shardings=(placed, None),
            compiler_options=training_options(),
        ),
        say,
    )
    judge = None if validation is None else _judge(loss, validation, config, frozen, sharding, say)
    with ExitStack() as stack:
        stop = stack.enter_context(stop_request())
        kept = stack.enter_context(Checkpoints(folder / "state", keep=2))
        best_params = BestParams(folder / "state" / "best", kept)
        state = state if kept.latest_step() is None else kept.restore(state)
        log = MetricsLog(folder, int(state.step), steps, say, _describe, config.trackers)
        stack.callback(log.close)
        if judge is not None and 0 not in log.validations:
            log.add_validation(0, *judge(state.params, kept))
        for number, (width, rows) in _from(batches, int(state.step), config.epochs):
            done, own = number + 1, rows[rows >= 0]
            where = partial(_rows_and_state, "training", own, kept)
            with guarded_step(state, number, log, kept, where):
                batch = _placed(train.assemble(rows, width), config.micro_batches, sharding)
                with jax.transfer_guard("disallow"):
                    state, metrics = step(state, frozen, batch)
            tokens = int(train.lengths[own].sum())
            log.add(done, metrics, tokens, check, where)
            if judge is not None and (done % config.evaluate_every == 0 or done == steps):
                log.flush()
                log.add_validation(done, *judge(state.params, kept))
                if log.best_step() == done:
                    best_params.save(done, state.params)
            if stop.asked or done % config.checkpoint_every == 0 or done == steps:
                log.flush()
                kept.save(done, state)
            if stop.asked:
                break
    if judge is None:
        return LoopResult(state.params, steps, {}, {}, steps)
    best = log.best_step()
    params = best_params.load(best, state.params)
    return LoopResult(params, best, log.validations[best], log.validations[0], steps)


def _rows_and_state(part: str, rows: np.ndarray, kept: Checkpoints | None) -> str:
    """Rows of the training or validation part, and the state that is kept, for a message."""
    shown = ", ".join(map(str, rows[:_SHOWN]))
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return f" ({part} rows {shown}{more}, counted from 0; {describe_last_state(kept)})"


def _describe(entry: Mapping[str, float]) -> str:
    return f"loss {entry['loss']:.4f}, {entry['tokens_per_second']:,.0f} tokens/s"


def evaluate(
    loss: Loss,
    params: PyTree,
    frozen: PyTree,
    rows: Rows,
    batch_size: int,
    sharding: jax.sharding.NamedSharding | None = None,
) -> dict[str, float]:
    """Means of a loss over all rows, without dropout."""
    config = LoopConfig(batch_size=batch_size)
    return _judge(loss, rows, config, frozen, sharding, lambda text: None)(params, None)[0]


def _judge(
    loss: Loss,
    rows: Rows,
    config: LoopConfig,
    frozen: PyTree,
    sharding: jax.sharding.NamedSharding | None,
    say: Callable[[str], None],
) -> Judge:
    planned = Batches(rows.lengths, config.batch_size, widest=rows.widest).in_order()
    sums_of = announce("the validation", jax.jit(make_judge(loss)), say)

    def judge(params: PyTree, kept: Checkpoints | None) -> tuple[dict[str, float], Where]:
        parts = []
        for width, own in planned:
            batch = _placed(rows.assemble(own, width), config.micro_batches, sharding)
            with memory_refusal(lambda: f"the validation ({describe_last_state(kept)})"):
                parts.append(sums_of(params, frozen, batch))
        # float64 on the host: a sum over many batches keeps its digits.
        host = jax.device_get(parts)
        bad = [n for n, part in enumerate(host) if not np.isfinite([*part.values()]).all()]
        first = planned[bad[0] if bad else 0][1]
        where = partial(_rows_and_state, "validation", first[first >= 0], kept)
        sums = {name: sum(float(part[name]) for part in host) for name in host[0]}
        whole = sums.pop("weight")
        return {name: value / whole for name, value in sums.items()}, where

    return judge


def check_batch(config: LoopConfig, sharding: jax.sharding.NamedSharding | None) -> None:
    """Refuse batches that do not divide over the devices.

    Args:
        config: sizes of the batches.
        sharding: of the micro-batches' rows over devices; None for one device.

    Raises:
        InputError: a micro-batch has a number of rows that does not divide.
    """
    if sharding is None:
        return
    rows = config.batch_size // config.micro_batches
    try:
        sharding.shard_shape((rows,))
    except ValueError:
        raise InputError(
            f"a micro-batch has {rows} rows, which do not divide over the mesh's data and fsdp "
            f"axes {dict(sharding.mesh.shape)}; change batch_size, micro_batches or the mesh."
        ) from None


def _placed(
    arrays: Mapping[str, np.ndarray], micros: int, sharding: jax.sharding.NamedSharding | None
) -> dict[str, jax.Array]:
    """Arrays [B, ...] as micro-batches [M, B / M, ...] on the devices."""
    cut = {name: a.reshape(micros, len(a) // micros, *a.shape[1:]) for name, a in arrays.items()}
    if sharding is None:
        return jax.device_put(cut)
    spec = jax.sharding.PartitionSpec(None, *sharding.spec)
    rows = jax.sharding.NamedSharding(sharding.mesh, spec)
    # Every process holds the whole batch, and its devices take their rows of it.
    return {
        name: jax.make_array_from_callback(a.shape, rows, a.__getitem__) for name, a in cut.items()
    }


def _from(batches: Batches, step: int, epochs: int) -> PyTree:
    """Number, width and rows of every batch from a step on."""
    for epoch in range(step // len(batches), epochs):
        first = epoch * len(batches)
        for index, batch in enumerate(batches.epoch(epoch)):
            if first + index >= step:
                yield first + index, batch
