"""Evaluation: plugs beside every baseline, by their answers and the loss of the right answers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, TypedDict

import jax
import numpy as np

from jaxalign.config import load_config
from jaxalign.data import lamp
from jaxalign.data.chat_template import chosen_template
from jaxalign.data.histories import Histories
from jaxalign.errors import InputError
from jaxalign.experiments.pplug.baselines import (
    BASELINES,
    METHODS,
    RATING_METHODS,
    EvaluatedMethod,
    keep_items,
    shuffle_histories,
)
from jaxalign.experiments.pplug.config import PPlugRunConfig
from jaxalign.experiments.pplug.data import data_digest, read_parts, sample_evenly
from jaxalign.experiments.pplug.losses import ScoredSamples, answer_losses, label_scores
from jaxalign.experiments.pplug.report import markdown
from jaxalign.experiments.pplug.run_folder import CONFIG, PPlugRun, load_run
from jaxalign.experiments.pplug.statistics import (
    TaskStatistics,
    compare_methods,
    expected_detectable_difference,
    score_distributions,
    score_predictions,
)
from jaxalign.files import expand_user, read_json, write_json, write_text
from jaxalign.metrics import text as metrics
from jaxalign.metrics.labels import median_labels
from jaxalign.models.chat import generate_texts
from jaxalign.models.embed import Encoder, load_encoder
from jaxalign.models.language import LanguageModel, load_language_model
from jaxalign.models.sampling import Sampling
from jaxalign.pplug.config import Place
from jaxalign.pplug.files import load
from jaxalign.pplug.model import PPlug, prefixes
from jaxalign.pplug.prompt_cache import PromptCache
from jaxalign.pplug.retrieval import Places, Retriever, build_questions, retrieve_items
from jaxalign.pplug.rows import format_prompts, soft_starts
from jaxalign.pplug.store import HistoryStore, history_store
from jaxalign.progress import Progress, counted
from jaxalign.runs.run_dir import Identity, check_run_dir, open_run_dir

KIND, UNTRAINED = "pplug evaluate", "zero-shot"
PREDICTIONS, LOSSES, PAGE = "predictions", "losses", "report.md"


class EvaluationReport(TypedDict):
    """The outcome of an evaluation, as in report.json.

    Attributes:
        task: Name of the task.
        split: Part of the data.
        samples, users: Their numbers.
        model, encoder: Names of the frozen models.
        trainings: Trainings of the run, <name>-<seed>.
        predictions: Methods whose answers were generated.
        notes: Remarks, such as which methods were left out and why.
        statistics: Scores and gains; None if no right answers are known.
    """

    task: str
    split: str
    samples: int
    users: int
    model: str
    encoder: str
    trainings: list[str]
    predictions: list[str]
    notes: list[str]
    statistics: TaskStatistics | None


class EvaluationJob(NamedTuple):
    """One method with the parameters of one seed."""

    name: str
    method: EvaluatedMethod
    seed: int


def evaluate(
    folder: str | Path,
    out: str | Path,
    options: Sequence[str] = (),
    data: str | Path | None = None,
    store: str | Path | None = None,
    resume: bool = False,
    show: bool = True,
) -> EvaluationReport:
    """Evaluate every method whose training is finished, all on the same samples.

    Answers that are on disk are not generated again: an evaluation resumes where it stopped, and
    includes trainings that were added to the run since.

    Args:
        folder: The `out` folder of `jaxalign.experiments.pplug.run`.
        out: Folder of the evaluation: predictions/<method>-<seed>.json in LaMP's format, losses/
            likewise (with text.answers scored, the log-probability of each label), report.md, and
            report.json, which is written last.
        options: Fields of the run's config as on a command line, such as --evaluate.samples 300.
        data: Path of the data if it has moved, in the format of the run's config.
        store: Folder of a store to use instead of the run's.
        resume: Continue an evaluation in `out`.
        show: Show progress on standard error.

    Returns:
        The report. Among its metrics is `loss`: nats per token of the right answers.

    Raises:
        InputError: The folder holds no run, data or models are not those of the run, or an option
            has no effect here.
    """
    out, progress = expand_user(out), Progress(show)
    trained = load_run(folder)
    config = _config(trained, options)
    check_run_dir(out, KIND, config.evaluate, resume)
    samples = _samples(trained, config, data)
    known = [one.output is not None for one in samples.samples]
    if any(known):  # raises an error that names a sample without an output, or without a label
        _ = samples.label_numbers if config.pplug.text.answers == "scored" else samples.outputs
    model = load_language_model(trained.sources.model, config.pplug.weights)
    encoder = load_encoder(trained.sources.encoder)
    identity: dict[str, Identity] = {
        "run": [trained.fingerprint, f"{config.pplug.loop.epochs} epochs"],
        "data": data_digest(samples),
        "model": model.sha256,
        "encoder": encoder.identity,
        "chat template": chosen_template(model.tokenizer, trained.config.pplug.text.template),
    }
    progress.say(f"{counted(len(samples), 'sample')} of {counted(len(set(samples.users)), 'user')}")
    with history_store(store or trained.store, encoder) as opened:
        prompt_cache = PromptCache(model.config, model.params, config.pplug.cache_gib, show)
        evaluator = _Evaluator(
            trained, config, model, encoder, opened, samples, out, show, prompt_cache
        )
        jobs, notes = _jobs(trained, evaluator)
        if not jobs:
            raise InputError(
                f"evaluate.methods names {', '.join(config.evaluate.methods)}, none of which can "
                "be evaluated here; expected a method whose training is finished: name others."
            )
        run = open_run_dir(out, KIND, config.evaluate, identity, resume)
        order = (BASELINES[0], UNTRAINED, *BASELINES[1:], *METHODS, *RATING_METHODS)
        first = next(name for name in order if _has(jobs, name))
        jobs.sort(key=lambda job: (job.name != first, job.method.training or "", job.seed))
        for number, job in enumerate(jobs, 1):
            progress.say(f"{number} of {len(jobs)}: {job.name}, seed {job.seed}")
            evaluator.complete(job)
            if number == 1 and all(known) and not evaluator.scored:
                _say_detectable(progress, samples, evaluator.predictions(job))
    methods = [name for name in (*METHODS, *RATING_METHODS) if _has(jobs, name)]
    report: EvaluationReport = {
        "task": samples.task,
        "split": config.evaluate.split,
        "samples": len(samples),
        "users": len(set(samples.users)),
        "model": model.name,
        "encoder": encoder.name,
        "trainings": [f"{name}-{seed}" for name, seed in trained.plugs],
        "predictions": methods,
        "notes": [*samples.notes, *notes],
        "statistics": None,
    }
    if all(known):
        baselines = [
            first,
            *(one for one in (*BASELINES, *RATING_METHODS) if one in methods and one != first),
        ]
        statistics = _statistics(evaluator, jobs, methods, baselines)
        report["statistics"] = statistics
        write_text(out / PAGE, markdown(statistics, report["notes"]))
    run.finish(report)
    return report


@dataclass
class _Evaluator:
    """The samples that all methods are evaluated on, and where their answers are kept."""

    trained: PPlugRun
    config: PPlugRunConfig
    model: LanguageModel
    encoder: Encoder
    store: HistoryStore
    samples: Histories
    out: Path
    show: bool
    prompt_cache: PromptCache
    retrieved: dict[Retriever, tuple[Places, ...]] = field(default_factory=dict)
    loaded: dict[tuple[str, int], PPlug] = field(default_factory=dict)

    def complete(self, job: EvaluationJob) -> None:
        """Generate the answers of a method and compute its losses, unless they are on disk."""
        if all(self._path(folder, job).exists() for folder in (LOSSES, PREDICTIONS)):
            return
        retriever, text = job.method.retriever, self.config.text(job.method.retriever is not None)
        chosen = None if retriever is None else self._retrieve(retriever)
        questions = build_questions(self.samples, chosen, text, self.model)
        soft = None
        if (plug := self._load(job)) is not None:
            text = plug.text
            soft = prefixes(plug, self.histories(job), self.store, self.show)
        settings = self.config.evaluate
        place: Place = "before" if plug is None else plug.persona.place
        scored = ScoredSamples(
            self.model, text, self.samples, questions, soft, place, self.prompt_cache,
            settings.batch_size, self.show,
        )  # fmt: skip
        if self.scored:
            self._keep_scores(job, label_scores(scored))
            return
        losses: dict[str, float] = {}
        if self.samples.samples[0].output is not None:
            losses = dict(zip(self._ids(), answer_losses(scored).tolist(), strict=True))
        write_json(self._path(LOSSES, job), losses)
        prompts = format_prompts(self.model, text, questions)
        answers = generate_texts(
            self.model,
            prompts,
            Sampling(
                max_tokens=settings.max_tokens or self.config.pplug.text.answer_tokens,
                temperature=settings.temperature,
            ),
            jax.random.fold_in(jax.random.key(settings.seed), job.seed),
            prefix=soft,
            prefix_starts=soft_starts(self.model, text, prompts, place),
            batch_size=settings.batch_size,
            progress=self.show,
        )
        self._keep_predictions(job, [answer.text.strip() for answer in answers])

    def _keep_scores(self, job: EvaluationJob, values: np.ndarray) -> None:
        """Write the scores of the labels, and the predicted labels as answers."""
        rules = self.samples.rules
        table = dict(zip(self._ids(), values.tolist(), strict=True))
        write_json(self._path(LOSSES, job), table)
        chosen = median_labels(values) if rules.kind == "rating" else values.argmax(axis=1)
        self._keep_predictions(job, [rules.labels[label] for label in chosen])

    def _keep_predictions(self, job: EvaluationJob, texts: Sequence[str]) -> None:
        path = self._path(PREDICTIONS, job)
        path.parent.mkdir(exist_ok=True)
        lamp.write_answers(path, self.samples.rules, dict(zip(self._ids(), texts, strict=True)))

    @property
    def scored(self) -> bool:
        """Whether labels are scored instead of answers generated."""
        return self.config.pplug.text.answers == "scored"

    def predictions(self, job: EvaluationJob) -> list[str]:
        """Return the answers on disk, in the order of the samples."""
        answers = lamp.read_answers(self._path(PREDICTIONS, job), self.samples.rules)[1]
        return [answers[name] for name in self._ids()]

    def losses(self, job: EvaluationJob) -> np.ndarray:
        """Return the losses on disk [N], or the scores of labels [N, K], in the samples' order."""
        losses = read_json(self._path(LOSSES, job), "losses of answers", "delete it and resume")
        return np.array([losses[name] for name in self._ids()], np.float64)

    def histories(self, job: EvaluationJob) -> Histories:
        """Return the samples with the histories of a method's personas."""
        if job.method.histories == "own":
            return self.samples
        if job.method.histories == "top":
            return keep_items(self.samples, self._retrieve("encoder"))
        if job.method.histories in ("category", "level"):
            return shuffle_histories(self.samples, job.seed, job.method.histories)
        return shuffle_histories(self.samples, job.seed)

    def _retrieve(self, retriever: Retriever) -> tuple[Places, ...]:
        """Return the items closest to each question, found once."""
        if retriever not in self.retrieved:
            self.retrieved[retriever] = retrieve_items(
                self.samples,
                retriever,
                self.config.retrieval.count,
                self.config.text(True),
                self.encoder,
                self.store,
                self.show,
            )
        return self.retrieved[retriever]

    def _load(self, job: EvaluationJob) -> PPlug | None:
        """Return the plug of a method; only the last one is kept in memory."""
        if job.method.training is None:
            return None
        key = (job.method.training, job.seed)
        if key not in self.loaded:
            self.loaded.clear()
            self.loaded[key] = load(self.trained.plugs[key], self.model, self.encoder)
        return self.loaded[key]

    def _ids(self) -> list[str]:
        return [one.id for one in self.samples.samples]

    def _path(self, folder: str, job: EvaluationJob) -> Path:
        name = re.sub(r"\W+", "_", job.name)
        return self.out / folder / f"{name}-{job.seed}.json"


def _config(trained: PPlugRun, options: Sequence[str]) -> PPlugRunConfig:
    """Return the run's config with the evaluation settings of the options."""
    found = load_config(PPlugRunConfig, trained.folder / CONFIG, options)
    if replace(found, evaluate=trained.config.evaluate) != trained.config:
        raise InputError(
            f"{' '.join(options)}: sets more than fields of `evaluate`; expected only such as "
            "--evaluate.samples 300, for the rest is the run's."
        )
    return found


def _samples(trained: PPlugRun, config: PPlugRunConfig, data: str | Path | None) -> Histories:
    settings, described = config.evaluate, config.data
    # Files without right answers do not name their task.
    if not described.has_own_task and described.own_task is None:
        described = replace(described, task=trained.sources.task)
    whole = read_parts(data or trained.sources.data, described, (settings.split,))[settings.split]
    found = sample_evenly(whole, settings.samples, config.data.seed)
    if len(set(found.users)) < 2:
        raise InputError(
            f"{found.source}: found samples of {len(set(found.users))} user to evaluate on, "
            "expected at least 2; give more with --data or --evaluate.samples."
        )
    return found


def _jobs(trained: PPlugRun, evaluator: _Evaluator) -> tuple[list[EvaluationJob], list[str]]:
    """Return what can be evaluated, and notes on why the rest cannot."""
    jobs, notes = [], []
    rated = evaluator.samples.rules.kind == "rating"
    known = {**METHODS, **(RATING_METHODS if rated else {})}
    wanted = evaluator.config.evaluate.methods or tuple(known)
    notes += [
        f"{name}: left out, as the task {evaluator.samples.task} has no ratings"
        for name in wanted
        if name not in known
    ]
    for name, method in known.items():
        if name not in wanted:
            continue
        seeds = sorted(seed for training, seed in trained.plugs if training == method.training)
        if method.training is None:
            seeds = [0]
        elif not seeds:
            notes.append(f"{name}: left out, as `{method.training}` is not trained")
        for seed in seeds:
            job = EvaluationJob(name, method, seed)
            if method.histories in ("other", "category", "level"):
                try:
                    more = evaluator.histories(job).notes
                except InputError as error:
                    notes.append(f"{name}: left out: {error}")
                    break
                own = evaluator.samples.notes
                notes += [f"{name}, seed {seed}: {note}" for note in more if note not in own]
            jobs.append(job)
    return jobs, notes


def _has(jobs: Sequence[EvaluationJob], name: str) -> bool:
    return any(job.name == name for job in jobs)


def _say_detectable(progress: Progress, samples: Histories, answers: Sequence[str]) -> None:
    """State what the data can show at all, before anything is compared."""
    for name, values in metrics.sample_scores(samples.rules, answers, samples.outputs).items():
        least = expected_detectable_difference(values, samples.users)
        progress.say(
            f"{name}: a difference of {least:.4f} is expected to show (80 % power, correlation 0.5 "
            "over users)"
        )


def _statistics(
    evaluator: _Evaluator,
    jobs: Sequence[EvaluationJob],
    methods: Sequence[str],
    baselines: Sequence[str],
) -> TaskStatistics:
    samples, settings = evaluator.samples, evaluator.config.evaluate
    jobs_of: Mapping[str, list[EvaluationJob]] = {
        name: [job for job in jobs if job.name == name] for name in methods
    }
    if evaluator.scored:
        return score_distributions(
            samples.rules,
            {name: [evaluator.losses(job) for job in own] for name, own in jobs_of.items()},
            samples.label_numbers,
            samples.users,
            samples.lengths,
            baselines,
            seed=settings.seed,
            draws=settings.draws,
        )
    found = score_predictions(
        samples.rules,
        {name: [evaluator.predictions(job) for job in own] for name, own in jobs_of.items()},
        samples.outputs,
        samples.users,
        samples.lengths,
        baselines,
        seed=settings.seed,
        draws=settings.draws,
    )
    losses = {
        name: np.stack([evaluator.losses(job) for job in own]) for name, own in jobs_of.items()
    }
    found["metrics"]["loss"] = compare_methods(
        losses, samples.users, samples.lengths, baselines, seed=settings.seed, draws=settings.draws
    )
    for name, values in losses.items():
        found["scores"][name]["loss"] = float(values.mean())
    return found
