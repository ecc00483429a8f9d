"""A run: models and histories in, trained plugs and baselines in a folder out."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import jax

from jaxalign.config import load_config, to_yaml
from jaxalign.data.chat_template import chosen_template
from jaxalign.data.histories import Histories
from jaxalign.errors import InputError
from jaxalign.experiments.pplug.baselines import TRAININGS, shuffle_histories
from jaxalign.experiments.pplug.config import PPlugEvaluateConfig, PPlugRunConfig
from jaxalign.experiments.pplug.data import (
    HistoryDataConfig,
    data_digest,
    read_parts,
    sample_evenly,
)
from jaxalign.experiments.pplug.run_folder import (
    CONFIG,
    KIND,
    PLUG,
    PLUGS,
    SOURCES,
    STORE,
    RunSources,
    TrainingReport,
)
from jaxalign.experiments.training_run import start_training
from jaxalign.files import expand_user, write_json, write_text
from jaxalign.models.embed import Encoder, load_encoder
from jaxalign.models.global_arrays import to_host
from jaxalign.models.language import LanguageModel
from jaxalign.models.resolve import stated_name
from jaxalign.pplug._train import train
from jaxalign.pplug.files import save
from jaxalign.pplug.model import init_plug
from jaxalign.pplug.prompt_cache import PromptCache
from jaxalign.pplug.retrieval import build_questions, rank_by_bm25
from jaxalign.pplug.rows import encoder_config
from jaxalign.pplug.store import HistoryStore, history_store
from jaxalign.pplug.tokenized import TokenizedSamples
from jaxalign.progress import Progress, counted
from jaxalign.runs.processes import on_first_process
from jaxalign.runs.run_dir import REPORT, Identity
from jaxalign.train.loop import check_batch
from jaxalign.train.mesh import DeviceReport, batch_sharding

# By how items are retrieved into the prompts: questions of the training and of the validation
# samples, None for the samples' own.
Questions = Mapping[Literal["bm25"] | None, tuple[list[str] | None, list[str] | None]]


@dataclass(frozen=True)
class RunReport:
    """The outcome of a run, as in report.json.

    Attributes:
        task: Name of the task.
        samples, users: Numbers of training samples and of their users.
        validation_samples: Number of samples of the validation loss.
        notes: Remarks about the data.
        trainings: The report of each finished training of the folder by the name of its own.
        devices: What the plugs were trained on.
    """

    task: str
    samples: int
    users: int
    validation_samples: int
    notes: tuple[str, ...]
    trainings: dict[str, TrainingReport]
    devices: DeviceReport


def run(
    config: PPlugRunConfig,
    model: str,
    encoder: str,
    source: str | Path,
    out: str | Path,
    store: str | Path | None = None,
    resume: bool = False,
    show: bool = True,
) -> RunReport:
    """Train plugs one after another, each in a folder of its own, and save them.

    Trainings can be added to a folder later, with `resume` and more `trainings` or seeds; finished
    ones stay as they are.

    Args:
        config: Settings of the run.
        model: Name of the language model, as in `load_language_model`.
        encoder: Name of the history encoder, as in `load_encoder`.
        source: Path of the data, in the format `config.data.kind`.
        out: Folder of the run: plugs/<training>-<seed>/ (plug.safetensors as `jaxalign.pplug.save`
            writes it, report.json, metrics.jsonl and state/), history/ (the store), config.yaml,
            sources.json, and report.json, which is written last.
        store: Folder of a store to use instead of history/; several runs can share one.
        resume: Continue an unfinished run in `out`, make a run longer, or add trainings to it.
        show: Show progress on standard error.

    Returns:
        The report, as in report.json.

    Raises:
        InputError: The data, a model, a setting or a folder cannot be used, or the store belongs
            to another encoder.
    """
    started = start_training(
        out,
        KIND,
        _fingerprinted(config),
        config.pplug.mesh,
        config.pplug.loop.trackers,
        resume,
        show,
    )
    out, progress = started.out, started.progress
    training, validation = _read(config.data, source, progress)
    for name, seed in config.schedule:  # refuse before hours of training, not after
        _training_histories(name, training, validation, seed)
    check_batch(config.pplug.loop, batch_sharding(started.mesh))
    language_model = started.load_model(model, config.pplug.weights)
    history_encoder = load_encoder(encoder)
    encoder_config(history_encoder)
    places = [out / PLUGS / f"{name}-{seed}" for name, seed in config.schedule]
    epochs = config.pplug.loop.epochs
    left = on_first_process(
        lambda: [
            name
            for (name, _), place in zip(config.schedule, places, strict=True)
            if not _finished(place, epochs)
        ]
    )
    questions = _checked_questions(config, language_model, left, training, validation)
    with ExitStack() as stack:
        if store is not None:  # refuse a foreign store before anything is written
            stack.enter_context(history_store(store, history_encoder))
        identity: dict[str, Identity] = {
            "model": language_model.sha256,
            "encoder": history_encoder.identity,
            "data": [data_digest(training), data_digest(validation)],
            "chat template": chosen_template(language_model.tokenizer, config.pplug.text.template),
        }
        folder = started.open(identity, config.pplug.optimiser)
        on_first_process(lambda: _reopen_shorter(out, epochs))
        opened = stack.enter_context(history_store(store or out / STORE, history_encoder))
        on_first_process(lambda: write_text(out / CONFIG, to_yaml(config)))
        sources = RunSources(
            stated_name(model),
            stated_name(encoder),
            str(expand_user(source).resolve()),
            training.task,
            None if store is None else str(expand_user(store).resolve()),
        )
        on_first_process(lambda: write_json(out / SOURCES, asdict(sources)))
        prompt_cache = PromptCache(
            config.pplug.decoder(language_model.config),
            language_model.params,
            config.pplug.cache_gib,
            show,
        )
        trainer = _Trainer(
            config,
            language_model,
            history_encoder,
            opened,
            training,
            validation,
            questions,
            progress,
            show,
            prompt_cache,
        )

        def reopen() -> None:
            if not all((place / REPORT).exists() for place in places):
                (out / REPORT).unlink(missing_ok=True)  # trainings are added: unfinished again

        on_first_process(reopen)
        reports = {}
        for number, ((name, seed), place) in enumerate(zip(config.schedule, places, strict=True)):
            progress.say(f"training {number + 1} of {len(places)}: {name}, seed {seed}")
            reports[place.name] = trainer.train(name, seed, place)
        for path in sorted((out / PLUGS).glob(f"*/{REPORT}")):  # of earlier calls, all the same
            if path.parent.name not in reports:
                reports[path.parent.name] = load_config(TrainingReport, path, [])
    report = RunReport(
        task=training.task,
        samples=len(training),
        users=len(set(training.users)),
        validation_samples=0 if validation is None else len(validation),
        notes=training.notes,
        trainings=reports,
        devices=started.devices,
    )
    folder.finish(asdict(report))
    return report


@dataclass(frozen=True)
class _Trainer:
    """The models and data that all trainings of a run share."""

    config: PPlugRunConfig
    model: LanguageModel
    encoder: Encoder
    store: HistoryStore
    training: Histories
    validation: Histories | None
    questions: Questions
    progress: Progress
    show: bool
    prompt_cache: PromptCache

    def train(self, name: str, seed: int, place: Path) -> TrainingReport:
        """Return the report of a training, which resumes from its newest checkpoint."""
        if on_first_process((place / REPORT).exists):
            return load_config(TrainingReport, place / REPORT, [])
        config = self.config.training(name, seed)
        prompts, validation_prompts = self.questions[TRAININGS[name].retriever]
        training, validation = _training_histories(name, self.training, self.validation, seed)
        # Lengths are measured on the users' own whole histories, so that all trainings start alike.
        key = jax.random.fold_in(jax.random.key(seed), 1)
        plug = init_plug(
            key,
            self.model,
            self.encoder,
            config.persona,
            config.text,
            self.training,
            self.store,
            self.show,
        )
        result = train(
            plug,
            training,
            config,
            place,
            self.progress,
            validation=validation,
            store=self.store,
            prompts=prompts,
            validation_prompts=validation_prompts,
            prompt_cache=self.prompt_cache,
        )
        whole = replace(result.plug, trained=to_host(result.plug.trained))
        on_first_process(lambda: save(place / PLUG, whole))
        report = TrainingReport(
            training=name,
            seed=seed,
            parameters=sum(leaf.size for leaf in jax.tree.leaves(result.plug.trained)),
            steps=result.fit.steps,
            best_step=result.fit.best_step,
            validation_before=result.fit.validation_before,
            validation=result.fit.validation,
            config=config,
        )
        on_first_process(lambda: write_json(place / REPORT, asdict(report)))
        return report


def _checked_questions(
    config: PPlugRunConfig,
    model: LanguageModel,
    trainings: Sequence[str],
    training: Histories,
    validation: Histories | None,
) -> Questions:
    """Return the questions of the trainings to do, refused before anything is encoded or trained.

    Args:
        config: Settings of the run.
        model: The language model.
        trainings: Names of the trainings that are not finished.
        training: Training samples.
        validation: Samples of the validation loss, or None.

    Raises:
        InputError: A prompt does not fit into the model, or an answer is no label of the task.
    """
    found: dict[Literal["bm25"] | None, tuple[list[str] | None, list[str] | None]] = {}
    checked = set()
    for spec in (TRAININGS[name] for name in trainings):
        text, persona = config.text(spec.retriever is not None), spec.persona(config.pplug.persona)
        if spec.retriever not in found:
            first, second = (
                None
                if spec.retriever is None or part is None
                else build_questions(part, rank_by_bm25(part, config.retrieval.count), text, model)
                for part in (training, validation)
            )
            found[spec.retriever] = first, second
        if (spec.retriever, persona.prefix_length) in checked:
            continue
        checked.add((spec.retriever, persona.prefix_length))
        for part, prompts in zip((training, validation), found[spec.retriever], strict=True):
            if part is not None:
                TokenizedSamples.of(model, persona, text, part, prompts)
    return found


def _finished(place: Path, epochs: int) -> bool:
    """Whether a training is finished, and as long as it is to be."""
    report = place / REPORT
    return report.exists() and (
        load_config(TrainingReport, report, []).config.loop.epochs == epochs
    )


def _reopen_shorter(out: Path, epochs: int) -> None:
    """Make finished trainings of fewer epochs unfinished again: they go on from their last state.

    Where the requested ones leave some out, such as baselines, these are unfinished until a run
    with them.
    """
    for path in (out / PLUGS).glob(f"*/{REPORT}"):
        if not _finished(path.parent, epochs):
            path.unlink()


def _read(
    config: HistoryDataConfig, source: str | Path, progress: Progress
) -> tuple[Histories, Histories | None]:
    """Return the samples to train on, and those of the validation loss."""
    found = read_parts(source, config, ("train", "validation"))
    training = sample_evenly(found["train"], config.train_samples, config.seed)
    validation = found.get("validation")
    validation = (
        None
        if validation is None
        else sample_evenly(validation, config.validation_samples, config.seed)
    )
    if validation is not None and not any(one.output is not None for one in validation.samples):
        if len(validation):
            progress.say(
                f"{validation.source} has no right answers: no validation loss is measured"
            )
        validation = None
    if validation is not None:
        _ = validation.outputs  # raises an error that names a sample without an output
    if not len(training.outputs):
        raise InputError(f"{training.source} holds no sample to train on; give some.")
    lengths = training.lengths
    progress.say(
        f"{counted(len(training), 'sample')} of {counted(len(set(training.users)), 'user')}, "
        f"histories of {lengths.min()} to {counted(lengths.max(), 'item')}, "
        f"{counted(0 if validation is None else len(validation), 'validation sample')}"
    )
    for note in training.notes:
        progress.say(note)
    return training, validation


def _training_histories(
    name: str, training: Histories, validation: Histories | None, seed: int
) -> tuple[Histories, Histories | None]:
    """Return both parts with the histories that a training sees."""
    if TRAININGS[name].histories == "own":
        return training, validation
    return (
        shuffle_histories(training, seed),
        None if validation is None else shuffle_histories(validation, seed),
    )


def _fingerprinted(config: PPlugRunConfig) -> PPlugRunConfig:
    """Return the settings that all trainings of a folder share, the others at their defaults."""
    plain = replace(config.pplug, loop=replace(config.pplug.loop, seed=0))
    default = PPlugRunConfig()
    return replace(
        config,
        pplug=plain,
        evaluate=PPlugEvaluateConfig(),
        trainings=default.trainings,
        seeds=default.seeds,
        baseline_seeds=default.baseline_seeds,
    )
