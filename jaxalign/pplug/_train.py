"""Training of a persona plug: next-token loss of the answers, the language model frozen."""

import tempfile
from collections.abc import Callable, Sequence
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
from jaxalign.models.global_arrays import place
from jaxalign.pplug.answers import FrozenParts, answer_loss
from jaxalign.pplug.config import PPlugConfig
from jaxalign.pplug.model import PlugParams, PPlug, prefix_spec
from jaxalign.pplug.prompt_cache import PromptCache
from jaxalign.pplug.rows import assistant_turn, padded_length, prepare_persona_inputs
from jaxalign.pplug.store import HistoryStore, history_store
from jaxalign.pplug.tokenized import TokenizedSamples
from jaxalign.progress import Progress
from jaxalign.train import optimiser
from jaxalign.train.loop import LoopResult, Rows, fit
from jaxalign.train.mesh import batch_sharding, make_mesh, param_shardings

STORE, MEAN = "history", "mean"


@dataclass(frozen=True, eq=False)
class PPlugTrainResult:
    """The result of a training.

    Attributes:
        plug: The plug with the lowest validation loss, or of the last step without validation.
        fit: Its step, its validation losses before and after training, and the number of steps; the
            epochs of `mean_epochs` count.
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
    prompt_cache: PromptCache | None = None,
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
        prompt_cache: Prompts that the same model has read, with `persona.place: after`; more are
            added.

    Returns:
        The trained plug and its losses.

    Raises:
        InputError: The config does not fit the plug, a sample has no output, a prompt is too long,
            the store belongs to another encoder, the mesh does not fit, or the loss is not finite.

    Source: arXiv 2409.11901, section 3.4.
    """
    _check(plug, config)
    if config.staged:
        with ExitStack() as stack:
            if store is None:  # one for both stages
                where = folder or stack.enter_context(tempfile.TemporaryDirectory())
                store = stack.enter_context(history_store(Path(where) / STORE, plug.encoder))
            stage = partial(
                train, histories=histories, progress=progress, validation=validation, store=store,
                prompts=prompts, validation_prompts=validation_prompts, prompt_cache=prompt_cache,
            )  # fmt: skip
            return _train_in_stages(plug, config, folder, stage)
    config = config.with_equal_passes
    progress = progress or Progress(False)
    mesh, decoder = make_mesh(config.mesh), config.decoder(plug.model.config)
    with ExitStack() as stack:
        if folder is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
        folder = Path(folder)
        if store is None and config.persona.source == "history":
            store = stack.enter_context(history_store(folder / STORE, plug.encoder))
        frozen = jax.tree.map(lambda leaf: leaf.astype(config.weights), plug.model.params)
        frozen = place(frozen, param_shardings(frozen, mesh, decoder))
        tokenized = [TokenizedSamples.of(plug.model, plug.persona, plug.text, histories, prompts)]
        if validation is not None:
            tokenized.append(
                TokenizedSamples.of(
                    plug.model, plug.persona, plug.text, validation, validation_prompts
                )
            )
        cache = None
        if config.persona.place == "after":
            texts = Sequences.joined([one.prompts for one in tokenized])
            if prompt_cache is None:
                prompt_cache = PromptCache(decoder, frozen, config.cache_gib, progress.show)
            cache, numbers = prompt_cache.read(texts)
            if cache is not None:
                ends = np.cumsum([len(one.prompts) for one in tokenized])[:-1]
                pairs = zip(tokenized, np.split(numbers, ends), strict=True)
                tokenized = [replace(one, numbers=own) for one, own in pairs]
        rows, *held_out = (
            _rows(plug, one, config, store, copies, progress.show)
            for one, copies in zip(tokenized, (config.copies, 0), strict=False)
        )
        turn = np.asarray(assistant_turn(plug.model, config.text), np.int32)
        others = place(
            (turn, cache, tokenized[0].answers.labels), NamedSharding(mesh, PartitionSpec())
        )
        spec = prefix_spec(plug, config.drop)
        encoder = replace(spec.encoder, dtype=config.compute, remat=config.remat)
        spec = spec._replace(decoder=decoder, encoder=encoder)
        # A copy, because the state is donated and the given plug must stay intact.
        fresh = jax.tree.map(np.array, plug.trained)
        state = optimiser.start(jax.random.key(config.loop.seed), fresh, config.optimiser)
        state = place(state, NamedSharding(mesh, PartitionSpec()))
        fitted = fit(
            state,
            FrozenParts(frozen, *others),
            partial(answer_loss, spec, mesh),
            rows,
            held_out[0] if held_out else None,
            config.loop,
            config.optimiser,
            folder,
            progress.say,
            batch_sharding(mesh),
            rates=config.rates,
        )
    return PPlugTrainResult(replace(plug, trained=fitted.params), fitted)


def _train_in_stages(
    plug: PPlug,
    config: PPlugConfig,
    folder: str | Path | None,
    stage: Callable[..., PPlugTrainResult],
) -> PPlugTrainResult:
    """Train with the mean of the items, then with attention from there on.

    Args:
        plug: The plug to start from.
        config: Settings of both stages.
        folder: As in `train`.
        stage: `train` without plug, config and folder.
    """
    persona = replace(config.persona, mean=True)
    mean = stage(
        replace(plug, persona=persona, trained={"persona": plug.trained["persona"]}),
        config=replace(
            config,
            persona=persona,
            loop=replace(config.loop, epochs=config.mean_epochs),
            mean_epochs=0,
        ),
        folder=None if folder is None else Path(folder) / MEAN,
    )
    trained: PlugParams = {**plug.trained, "persona": mean.plug.trained["persona"]}
    last = stage(
        replace(plug, trained=trained), config=replace(config, mean_epochs=0), folder=folder
    )
    whole = replace(
        last.fit,
        steps=mean.fit.steps + last.fit.steps,
        best_step=mean.fit.steps + last.fit.best_step,
        validation_before=mean.fit.validation_before,
    )
    return replace(last, fit=whole)


def _rows(
    plug: PPlug,
    tokenized: TokenizedSamples,
    config: PPlugConfig,
    store: HistoryStore | None,
    copies: int,
    show: bool,
) -> Rows:
    """Return samples as rows of the training loop.

    Each sample comes once with its whole history, and `copies` times with items left out.
    """
    histories, lengths = tokenized.histories, tokenized.prompts.lengths
    inputs = prepare_persona_inputs(
        plug.encoder, config.persona, config.text, histories, store, show, plug.centre
    )
    # Copies are made whatever the persona is made of, so that all trainings have equal passes.
    repeated = np.tile(np.flatnonzero(histories.lengths > 2), copies)
    samples = np.concatenate([np.arange(len(histories)), repeated])
    # Batches are composed by the lengths whether prompts are cached or not, so that a run which
    # resumes with another `cache_gib` goes on with the same batches.
    widths = lengths
    if inputs.queries is not None:
        widths = np.maximum(widths, inputs.queries.lengths)
    item_slots = padded_length(inputs.counts)

    def assemble(rows: np.ndarray, width: int) -> dict[str, np.ndarray]:
        if tokenized.numbers is not None:  # one program: cached prompts are not computed again
            width = int(widths.max())
        own = np.where(rows < 0, -1, samples[rows])
        # No wider than the longest prompt: the widths of buckets are far apart.
        prompts, prompt_lengths = tokenized.prompts.padded(own, min(width, int(lengths.max())))
        found = {
            "prompts": prompts,
            "prompt_lengths": prompt_lengths,
            "is_copy": rows >= len(histories),
            **tokenized.answers.arrays(own),
            **inputs.arrays(own, width, item_slots),
        }
        if tokenized.numbers is not None:
            found["prompt"] = np.where(own < 0, 0, tokenized.numbers[own])
        return found

    return Rows(widths[samples], assemble)


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
