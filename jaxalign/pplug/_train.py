"""Training of a persona plug: next-token loss of the answers, the language model frozen."""

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
from jaxalign.pplug.config import PPlugConfig
from jaxalign.pplug.model import PPlug, loss, prefix_spec
from jaxalign.pplug.rows import (
    padded_length,
    padded_width,
    prepare_persona_inputs,
    tokenize_samples,
)
from jaxalign.pplug.store import HistoryStore, history_store
from jaxalign.progress import Progress
from jaxalign.train import optimiser
from jaxalign.train.loop import LoopResult, Rows, fit
from jaxalign.train.mesh import batch_sharding, make_mesh, param_shardings

STORE = "history"


@dataclass(frozen=True, eq=False)
class PPlugTrainResult:
    """The result of a training.

    Attributes:
        plug: The plug with the lowest validation loss, or of the last step without validation.
        fit: Its step, its validation losses before and after training, and the number of steps.
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
) -> PPlugTrainResult:
    """Train a plug, resuming from the newest checkpoint in the folder if there is one.

    The language model and the history encoder stay frozen. The result depends neither on
    interruptions nor on when checkpoints are written. Each width of batch is compiled once.

    Args:
        plug: A plug from `init_plug` or of an earlier training; it is not modified.
        histories: N samples with outputs.
        config: Settings of the training; `persona` and `text` must be those of the plug.
        folder: Folder of metrics.jsonl, of the checkpoints under state/, and of the store if none
            is given; None keeps nothing.
        progress: Where progress is shown; None shows nothing.
        validation: Samples of the validation loss, with whole histories; None for no validation.
        store: Store of the encoder's vectors; vectors of new items are added.
        prompts: N questions to use instead of the samples' inputs, such as with retrieved items.
        validation_prompts: The same for the validation samples.

    Returns:
        The trained plug and its losses.

    Raises:
        InputError: The config does not fit the plug, a sample has no output, a prompt is too long,
            the store belongs to another encoder, the mesh does not fit, or the loss is not finite.

    Source: arXiv 2409.11901, section 3.4.
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
        held_out = None
        if validation is not None:
            held_out = _rows(plug, validation, config, store, validation_prompts, 0)
        frozen = jax.tree.map(lambda leaf: leaf.astype(config.weights), plug.model.params)
        frozen = jax.device_put(frozen, param_shardings(frozen, mesh, decoder))
        spec = prefix_spec(plug, config.drop)
        encoder = replace(spec.encoder, dtype=config.compute, remat=config.remat)
        spec = spec._replace(decoder=decoder, encoder=encoder)
        # A copy, because the state is donated and the given plug must stay intact.
        fresh = jax.tree.map(np.array, plug.trained)
        state = optimiser.start(jax.random.key(config.loop.seed), fresh, config.optimiser)
        state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
        fitted = fit(
            state,
            frozen,
            partial(loss, spec, mesh),
            rows,
            held_out,
            config.loop,
            config.optimiser,
            folder,
            say,
            batch_sharding(mesh),
        )
    return PPlugTrainResult(replace(plug, trained=fitted.params), fitted)


def _rows(
    plug: PPlug,
    histories: Histories,
    config: PPlugConfig,
    store: HistoryStore | None,
    prompts: Sequence[str] | None,
    copies: int,
) -> Rows:
    """Return the samples as rows of the training loop.

    Each sample comes once with its whole history, and `copies` times with items left out.
    """
    questions = [sample.input for sample in histories.samples] if prompts is None else prompts
    prompt_tokens, answer_tokens = tokenize_samples(plug.model, config.text, histories, questions)
    inputs = prepare_persona_inputs(plug.encoder, config.persona, config.text, histories, store)
    # Copies are made whatever the persona is made of, so that all trainings have equal passes.
    repeated = np.tile(np.flatnonzero(histories.lengths > 2), copies)
    samples = np.concatenate([np.arange(len(histories)), repeated])
    lengths = prompt_tokens.lengths
    if inputs.queries is not None:
        lengths = np.maximum(lengths, inputs.queries.lengths)
    answer_slots = int(answer_tokens.lengths.max())
    room = plug.model.config.positions - config.persona.prefix_length - answer_slots
    _check_room(plug, histories, prompt_tokens, room, answer_slots)
    prompt_slots = min(room, padded_width(prompt_tokens))
    item_slots = padded_length(inputs.counts)

    def assemble(rows: np.ndarray, width: int) -> dict[str, np.ndarray]:
        own = np.where(rows < 0, -1, samples[rows])
        prompts, prompt_lengths = prompt_tokens.padded(own, min(width, prompt_slots))
        completions, completion_lengths = answer_tokens.padded(own, answer_slots)
        return {
            "prompts": prompts,
            "prompt_lengths": prompt_lengths,
            "completions": completions,
            "completion_lengths": np.where(rows < 0, 0, completion_lengths).astype(np.int32),
            "is_copy": rows >= len(histories),
            **inputs.arrays(own, width, item_slots),
        }

    return Rows(lengths[samples], assemble)


def _check(plug: PPlug, config: PPlugConfig) -> None:
    for name, own, expected in (
        ("persona", plug.persona, config.persona),
        ("text", plug.text, config.text),
    ):
        if own != expected:
            raise InputError(
                f"{name}: the plug has {own}, the config {expected}; expected the same: start the "
                "plug with this config."
            )


def _check_room(
    plug: PPlug, histories: Histories, prompts: Sequences, room: int, answer_slots: int
) -> None:
    row = int(np.argmax(prompts.lengths))
    longest = int(prompts.lengths[row])
    if longest > room:
        raise InputError(
            f"{histories.source}: question {histories.samples[row].id!r} has {longest} "
            f"tokens as a prompt; beside {answer_slots} of answers {plug.model.name} has room for "
            f"{room}: lower text.prompt_tokens or text.answer_tokens."
        )
