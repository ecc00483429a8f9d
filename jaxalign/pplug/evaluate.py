"""Plugs judged beside every control: answers, the loss of the right ones, and the table."""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxalign.config import load_config
from jaxalign.data import lamp
from jaxalign.data.histories import Histories
from jaxalign.errors import InputError
from jaxalign.files import write_json
from jaxalign.kernels.token_logprob import token_logprob
from jaxalign.metrics import text as metrics
from jaxalign.models import families
from jaxalign.models.buckets import bucket_length
from jaxalign.models.chat import generate_texts
from jaxalign.models.completions import CompletionBatch, completion_states
from jaxalign.models.decoder import unembedding
from jaxalign.models.embed import Encoder, load_encoder
from jaxalign.models.encoder_files import read_json
from jaxalign.models.language import LanguageModel, load_language_model
from jaxalign.models.sampling import Sampling
from jaxalign.pplug import controls, figures, page
from jaxalign.pplug.config import TextConfig
from jaxalign.pplug.controls import BASELINES, CONTROLS, Control
from jaxalign.pplug.files import load
from jaxalign.pplug.model import PPlug, prefixes
from jaxalign.pplug.questions import nearest, questions
from jaxalign.pplug.retrieval import Places
from jaxalign.pplug.rows import learned, prompts
from jaxalign.pplug.run import CONFIG, FORMAT, REPORT, RunConfig, Trained, load_run
from jaxalign.pplug.source import digest, read, subset
from jaxalign.pplug.store import HistoryStore, history_store
from jaxalign.progress import Progress, track
from jaxalign.runs.run_dir import open_run_dir

Floats = NDArray[np.float64]
ALONE = "zero-shot"
PREDICTIONS, LOSSES = "predictions", "losses"


class Job(NamedTuple):
    """One method with the parameters of one seed."""

    name: str
    control: Control
    seed: int


def run_evaluate(
    folder: str | Path,
    out: str | Path,
    options: Sequence[str] = (),
    data: str | Path | None = None,
    store: str | Path | None = None,
    resume: bool = False,
    show: bool = True,
) -> dict[str, Any]:
    """Judge every control whose training is there, all on the same samples.

    Answers that are on disk are not drawn again: an evaluation goes on where it stopped, and takes
    in trainings that were added to the run since.

    Args:
        folder: of `jaxalign.pplug.run.run`.
        out: folder: controls.json and controls.md (the figures), report.json, and
            predictions/<method>-<seed>.json in LaMP's format; losses/ likewise.
        options: fields of the run's config as on a command line, such as --evaluate.samples 300.
        data: in place of those of the run, to be read as config.data says.
        store: in place of the run's.
        resume: go on with an evaluation in `out`.
        show: progress on standard error.

    Returns:
        What `figures.judge` returns, `loss` among the figures: nats a token of the right answers.
        Where no right answers are known there are `task` and `predictions` only.

    Raises:
        InputError: a folder that is no run, data or models other than those of the run, or an
            option that is of no use here.
    """
    out, progress = Path(out), Progress(show)
    trained = load_run(folder)
    config = _config(trained, options)
    asked = _samples(trained, config, data)
    known = [one.output is not None for one in asked.samples]
    if any(known):
        _ = asked.outputs  # all of them, or it says which is missing
    model = load_language_model(trained.sources["model"], config.pplug.weights)
    encoder = load_encoder(trained.sources["encoder"])
    mark = read_json(trained.folder / "run.json", required=True)["fingerprint"]
    names = [mark, digest(asked), model.sha256, encoder.identity]
    open_run_dir(out, "pplug evaluate", config.evaluate, [], names, resume)
    for name in (PREDICTIONS, LOSSES):
        (out / name).mkdir(exist_ok=True)
    progress.say(f"{len(asked):,} samples of {len(set(asked.users)):,} users")
    with ExitStack() as stack:
        opened = stack.enter_context(history_store(store or trained.store, encoder))
        bench = _Bench(trained, config, model, encoder, opened, asked, out, show)
        jobs, notes = _jobs(trained, bench)
        first = BASELINES[0] if _has(jobs, BASELINES[0]) else ALONE
        jobs.sort(key=lambda job: (job.name != first, job.control.run or "", job.seed))
        for number, job in enumerate(jobs, 1):
            progress.say(f"{number} of {len(jobs)}: {job.name}, seed {job.seed}")
            bench.answer(job)
            if number == 1 and all(known):
                _say_planned(progress, asked, bench.read(job)[0])
    predictions = {name: bench.all(name, jobs, 0) for name in CONTROLS if _has(jobs, name)}
    report: dict[str, Any] = {"task": asked.task, "predictions": [*predictions]}
    if all(known):
        baselines = [first, *(one for one in BASELINES if one in predictions and one != first)]
        losses = {name: bench.all(name, jobs, 1) for name in predictions}
        report = _judged(config, asked, predictions, losses, baselines)
        report["notes"] = [*asked.notes, *notes]
        page.write(out, report)
    about = {
        "format": FORMAT,
        "split": config.evaluate.split,
        "samples": len(asked),
        "users": len(set(asked.users)),
        "model": model.name,
        "encoder": encoder.name,
        "trainings": [f"{name}-{seed}" for name, seed in trained.plugs],
        "notes": [*asked.notes, *notes],
    }
    write_json(out / REPORT, about)
    return report


def answer_losses(
    model: LanguageModel,
    text: TextConfig,
    histories: Histories,
    asked: Sequence[str],
    soft: Any = None,
    batch_size: int = 16,
    progress: bool = True,
) -> Floats:
    """Next-token loss of the right answer to each question, its stop token included.

    Args:
        model: who is asked.
        text: how, and how much of an answer counts.
        histories: N samples with outputs.
        asked: N texts to ask, such as the samples' inputs.
        soft: [N, Q, D] soft tokens before the prompts, or None.
        batch_size: rows at once.
        progress: show a bar on stderr when it takes more than a few seconds.

    Returns:
        [N] nats a token, the mean over the tokens of each answer.

    Raises:
        InputError: as `learned`.
    """
    given, said = learned(model, text, histories, asked)
    order = np.argsort(-given.lengths, kind="stable")
    parts = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    slots = bucket_length(int(said.lengths.max()), model.config.positions)
    found = np.zeros(len(order))
    for rows in track("judging the right answers", parts, len(order), len, progress):
        filled = np.full(batch_size, rows[-1])
        filled[: len(rows)] = rows
        widest = int(given.lengths[rows].max())
        room = max(widest, model.config.positions)
        tokens, lengths = given.padded(filled, bucket_length(widest, room))
        answers = CompletionBatch(tokens, lengths, *said.padded(filled, slots))
        before = None if soft is None else np.asarray(soft)[filled]
        sums = _losses(model.config, model.params, answers, before)
        found[rows] = np.asarray(sums, np.float64)[: len(rows)] / said.lengths[rows]
    if not np.isfinite(found).all():
        raise InputError(
            f"{model.name} in {model.config.dtype} gives losses that are not finite: its weights "
            "or the plug are broken."
        )
    return found


@partial(jax.jit, static_argnums=0)
def _losses(config: families.Config, params: Any, answers: CompletionBatch, soft: Any) -> jax.Array:
    """[B] nats of each answer."""
    states = completion_states(config, params, answers, prefix=soft)
    logprob, _ = token_logprob(states, unembedding(params), answers.completions)
    return -jnp.sum(jnp.where(answers.mask, logprob, 0), axis=1)


class _Bench:
    """What all methods are judged on, and where their answers are kept."""

    def __init__(
        self,
        trained: Trained,
        config: RunConfig,
        model: LanguageModel,
        encoder: Encoder,
        store: HistoryStore,
        asked: Histories,
        out: Path,
        show: bool,
    ):
        self.trained, self.config, self.model, self.encoder = trained, config, model, encoder
        self.store, self.asked, self.out, self.show = store, asked, out, show
        self._chosen: dict[str, tuple[Places, ...]] = {}
        self._plug: tuple[Any, PPlug | None] = (None, None)

    @cached_property
    def settings(self) -> Sampling:
        """How answers are drawn."""
        judging = self.config.evaluate
        most = judging.max_tokens or self.config.pplug.text.answer_tokens
        return Sampling(max_tokens=most, temperature=judging.temperature)

    def answer(self, job: Job) -> None:
        """Draw the answers of a method and measure its losses, unless they are on disk."""
        if all(self._path(folder, job).exists() for folder in (LOSSES, PREDICTIONS)):
            return
        control, text = job.control, self.config.text(job.control.retrieval is not None)
        chosen = self.chosen(control.retrieval)
        asked = questions(self.asked, chosen, text, self.model)
        soft = None
        if (plug := self._loaded(job)) is not None:
            text = plug.text
            soft = prefixes(plug, self.given(job), self.store, self.show)
        judging = self.config.evaluate
        told: dict[str, Any] = {"batch_size": judging.batch_size, "progress": self.show}
        if self.asked.samples[0].output is not None:
            losses = answer_losses(self.model, text, self.asked, asked, soft, **told)
            pairs = zip(self.asked.samples, losses.tolist(), strict=True)
            write_json(self._path(LOSSES, job), {one.id: loss for one, loss in pairs})
        else:
            write_json(self._path(LOSSES, job), {})
        lines = prompts(self.model, text, asked)
        key = jax.random.fold_in(jax.random.key(judging.seed), job.seed)
        answers = generate_texts(self.model, lines, self.settings, key, prefix=soft, **told)
        found = {
            one.id: answer.text.strip()
            for one, answer in zip(self.asked.samples, answers, strict=True)
        }
        lamp.write_answers(self._path(PREDICTIONS, job), self.asked.task, found)

    def read(self, job: Job) -> tuple[list[str], list[float]]:
        """Answers and losses that are on disk, in the order of the samples."""
        answers = lamp.read_answers(self._path(PREDICTIONS, job))[1]
        losses = json.loads(self._path(LOSSES, job).read_text())
        ids = [one.id for one in self.asked.samples]
        return [answers[name] for name in ids], [losses[name] for name in ids if losses]

    def all(self, name: str, jobs: Sequence[Job], part: int) -> list[Any]:
        """Answers (0) or losses (1) of a method, one list a seed."""
        return [self.read(job)[part] for job in jobs if job.name == name]

    def given(self, job: Job) -> Histories:
        """The samples with the histories that a method's personas are made of."""
        if job.control.histories == "own":
            return self.asked
        if job.control.histories == "top":
            return controls.top(self.asked, self.chosen("encoder") or ())
        if job.control.histories == "category":
            return controls.shuffled(self.asked, job.seed, "category")
        return controls.shuffled(self.asked, job.seed)

    def chosen(self, by: controls.Retrieval) -> tuple[Places, ...] | None:
        """Items near to each question, found once."""
        if by is None:
            return None
        if by not in self._chosen:
            where = (self.config.text(True), self.encoder, self.store, self.show)
            self._chosen[by] = nearest(self.asked, by, self.config.retrieval.count, *where)
        return self._chosen[by]

    def _loaded(self, job: Job) -> PPlug | None:
        if job.control.run is None:
            return None
        wanted = (job.control.run, job.seed)
        if self._plug[0] != wanted:
            place = self.trained.plugs[wanted]
            self._plug = (wanted, load(place, self.model, self.encoder))
        return self._plug[1]

    def _path(self, folder: str, job: Job) -> Path:
        name = re.sub(r"\W+", "_", job.name)
        return self.out / folder / f"{name}-{job.seed}.json"


def _config(trained: Trained, options: Sequence[str]) -> RunConfig:
    """The run's config with another judging."""
    found = load_config(RunConfig, trained.folder / CONFIG, options)
    if replace(found, evaluate=trained.config.evaluate) != trained.config:
        raise InputError(
            f"{' '.join(options)}: sets more than fields of `evaluate`; expected only such as "
            "--evaluate.samples 300, for the rest is the run's."
        )
    return found


def _samples(trained: Trained, config: RunConfig, data: str | Path | None) -> Histories:
    judging, task = config.evaluate, trained.sources["task"]
    # Files without right answers do not say what they ask.
    told = config.data if config.data.kind == "huffpost" else replace(config.data, task=task)
    whole = read(data or trained.sources["data"], told, (judging.split,))[judging.split]
    found = subset(whole, judging.samples, config.data.seed)
    if len(set(found.users)) < 2:
        raise InputError(
            f"{found.source}: found samples of {len(set(found.users))} user to judge on, expected "
            "at least 2; give more with --data or --evaluate.samples."
        )
    return found


def _jobs(trained: Trained, bench: _Bench) -> tuple[list[Job], list[str]]:
    """What can be judged, and why the rest cannot."""
    jobs, notes = [], []
    for name, control in CONTROLS.items():
        own = sorted(seed for run, seed in trained.plugs if run == control.run)
        if control.run is None:
            own = [0]
        elif not own:
            notes.append(f"{name}: left out, as `{control.run}` is not trained")
        for seed in own:
            job = Job(name, control, seed)
            if control.histories in ("other", "category"):
                try:
                    more = bench.given(job).notes
                except InputError as error:
                    notes.append(f"{name}: left out: {error}")
                    break
                notes += [
                    f"{name}, seed {seed}: {note}" for note in more if note not in bench.asked.notes
                ]
            jobs.append(job)
    return jobs, notes


def _has(jobs: Sequence[Job], name: str) -> bool:
    return any(job.name == name for job in jobs)


def _say_planned(progress: Progress, asked: Histories, answers: Sequence[str]) -> None:
    """What the data can show at all, before anything is compared."""
    for name, values in metrics.sample_scores(asked.task, answers, asked.outputs).items():
        least = figures.planned_difference(values, asked.users)
        progress.say(
            f"{name}: a difference of {least:.4f} is expected to show (80 % power, correlation .5 "
            "over users)"
        )


def _judged(
    config: RunConfig,
    asked: Histories,
    predictions: Mapping[str, Sequence[Sequence[str]]],
    losses: Mapping[str, Sequence[Sequence[float]]],
    baselines: Sequence[str],
) -> dict[str, Any]:
    drawn: dict[str, Any] = {"seed": config.evaluate.seed, "draws": config.evaluate.draws}
    report = figures.judge(
        asked.task, predictions, asked.outputs, asked.users, asked.lengths, baselines, **drawn
    )
    told = {name: np.asarray(values, np.float64) for name, values in losses.items()}
    report["figures"]["loss"] = figures.compare(
        told, asked.users, asked.lengths, baselines, **drawn
    )
    for name, values in told.items():
        report["scores"][name]["loss"] = float(values.mean())
    return report
