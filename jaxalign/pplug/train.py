"""Training a persona plug: next-token loss of the answers, the language model frozen."""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxalign.data.histories import Histories
from jaxalign.data.sequences import Sequences
from jaxalign.errors import InputError
from jaxalign.pplug import model as plugs
from jaxalign.pplug.config import PPlugConfig
from jaxalign.pplug.model import PPlug
from jaxalign.pplug.rows import enough, learned, slots_of, told
from jaxalign.pplug.store import HistoryStore, history_store
from jaxalign.progress import Progress
from jaxalign.train import optimiser
from jaxalign.train.loop import LoopResult, Rows, fit
from jaxalign.train.mesh import batch_sharding, make_mesh, param_shardings

STORE = "history"


@dataclass(frozen=True, eq=False)
class TrainResult:
    """What training gives.

    Attributes:
        plug: of the lowest validation loss, or of the last step where nothing is held out.
        fit: its step, its losses on the validation samples, and how many steps there were.
    """

    plug: PPlug
    fit: LoopResult


def train(
    plug: PPlug,
    histories: Histories,
    config: PPlugConfig,
    folder: str | Path | None = None,
    progress: Progress | None = None,
    *,
    validation: Histories | None = None,
    store: HistoryStore | None = None,
    prompts: Sequence[str] | None = None,
    validation_prompts: Sequence[str] | None = None,
) -> TrainResult:
    """Train a plug, going on from the newest state in the folder.

    The result depends on neither the interruptions nor when states are kept. Each width of batch
    is compiled once.

    Args:
        plug: of `jaxalign.pplug.start` or of an earlier run; stays as it is.
        histories: N samples with outputs.
        config: of the run.
        folder: for metrics.jsonl, states under state/, and the store where none is given; None
            keeps nothing.
        progress: where it is shown; None shows nothing.
        validation: samples to judge by, with whole histories; None for nothing.
        store: of the encoder's vectors; new items are added.
        prompts: N questions in place of the samples' own inputs, such as with items in them.
        validation_prompts: likewise.

    Returns:
        The plug and how it did.

    Raises:
        InputError: a config that does not fit the plug, a sample without an output, a prompt that
            is too long, a store of another encoder, a mesh that does not fit, or a loss that is
            not finite.
    """
    _check(plug, config)
    say = (progress or Progress(False)).say
    mesh, decoder = make_mesh(config.mesh), config.decoder(plug.model.config)
    with ExitStack() as stack:
        if folder is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
        folder = Path(folder)
        if store is None and config.persona.source == "history":
            store = stack.enter_context(history_store(folder / STORE, plug.encoder))
        rows = _rows(plug, histories, config, store, prompts, config.copies)
        judged = None
        if validation is not None:
            judged = _rows(plug, validation, config, store, validation_prompts, 0)
        frozen = jax.tree.map(lambda leaf: leaf.astype(config.weights), plug.model.params)
        frozen = jax.device_put(frozen, param_shardings(frozen, mesh, decoder))
        plan = plugs.plan(plug, config.drop)
        encoder = replace(plan.encoder, dtype=config.compute, remat=config.remat)
        plan = plan._replace(decoder=decoder, encoder=encoder)
        # A copy: the state is donated, and the plug given stays.
        fresh = jax.tree.map(np.array, plug.trained)
        state = optimiser.start(jax.random.key(config.loop.seed), fresh, config.optimiser)
        state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
        fitted = fit(
            state,
            frozen,
            partial(plugs.loss, plan, mesh),
            rows,
            judged,
            config.loop,
            config.optimiser,
            folder,
            say,
            batch_sharding(mesh),
        )
    return TrainResult(replace(plug, trained=fitted.params), fitted)


def _rows(
    plug: PPlug,
    histories: Histories,
    config: PPlugConfig,
    store: HistoryStore | None,
    prompts: Sequence[str] | None,
    copies: int,
) -> Rows:
    """Samples as the loop takes them, each once whole and, with copies, again without items."""
    questions = [sample.input for sample in histories.samples] if prompts is None else prompts
    asked, said = learned(plug.model, config.text, histories, questions)
    read = told(plug.encoder, config.persona, config.text, histories, store)
    # Whatever the persona is made of: what is compared has equal passes.
    repeated = np.tile(np.flatnonzero(histories.lengths > 2), copies)
    samples = np.concatenate([np.arange(len(histories)), repeated])
    lengths = asked.lengths
    if read.queries is not None:
        lengths = np.maximum(lengths, read.queries.lengths)
    answer_slots = int(said.lengths.max())
    room = plug.model.config.positions - config.persona.soft - answer_slots
    _check_room(plug, histories, asked, room, answer_slots)
    item_slots = slots_of(read.counts)

    def assemble(rows: np.ndarray, width: int) -> dict[str, np.ndarray]:
        own = np.where(rows < 0, -1, samples[rows])
        prompts, given = asked.padded(own, min(width, room, enough(asked)))
        answers, ends = said.padded(own, answer_slots)
        return {
            "prompts": prompts,
            "lengths": given,
            "answers": answers,
            "ends": np.where(rows < 0, 0, ends).astype(np.int32),
            "thinned": rows >= len(histories),
            **read.arrays(own, width, item_slots),
        }

    return Rows(lengths[samples], assemble)


def _check(plug: PPlug, config: PPlugConfig) -> None:
    for name, own, asked in (
        ("persona", plug.persona, config.persona),
        ("text", plug.text, config.text),
    ):
        if own != asked:
            raise InputError(
                f"{name}: the plug has {own}, the config {asked}; expected the same: start the "
                "plug with this config."
            )


def _check_room(
    plug: PPlug, histories: Histories, asked: Sequences, room: int, answer_slots: int
) -> None:
    row = int(np.argmax(asked.lengths))
    if asked.lengths[row] > room:
        raise InputError(
            f"{histories.source}: question {histories.samples[row].id!r} has {asked.lengths[row]} "
            f"tokens as a prompt; beside {answer_slots} of answers {plug.model.name} has room for "
            f"{room}: lower text.prompt_tokens or text.answer_tokens."
        )
