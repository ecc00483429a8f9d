"""Answers of a trained plug to new questions: one question with a history, or a file of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxalign.config import load_config
from jaxalign.data import lamp
from jaxalign.data.dates import date_key
from jaxalign.data.histories import Histories, Item, Sample, in_words
from jaxalign.data.prompt_rows import PromptRow
from jaxalign.data.tables import Row, read_rows
from jaxalign.data.values import field_text
from jaxalign.errors import InputError
from jaxalign.experiments.generate import RowPolicies, tree_digest
from jaxalign.experiments.pplug.baselines import TRAININGS
from jaxalign.experiments.pplug.run_folder import PLUG, PLUGS, PPlugRun, TrainingReport, load_run
from jaxalign.files import expand_user
from jaxalign.models.buckets import bucket_length, padded
from jaxalign.models.chat import prompt_ids
from jaxalign.models.generate import GenerationArguments, Prompt, prompt_embeddings
from jaxalign.models.language import LanguageModel
from jaxalign.pplug.files import load
from jaxalign.pplug.model import PPlug, prefixes
from jaxalign.pplug.retrieval import build_questions, retrieve_items
from jaxalign.pplug.rows import format_prompts, soft_starts
from jaxalign.pplug.store import history_store
from jaxalign.runs.run_dir import REPORT


class RunPlug(NamedTuple):
    """A trained plug and the run that it belongs to."""

    run: PPlugRun
    training: str
    plug: PPlug


def open_plug(
    folder: str | Path, model: LanguageModel | None = None, dtype: str | None = None
) -> RunPlug:
    """Read a plug of a run.

    Args:
        folder: Folder of a run, whose first plug is read, or of one training in it, such as
            runs/pplug/plugs/task-0.
        model: Its language model if it is loaded already; None loads the one named in the file.
        dtype: Data type in which that is loaded; None for the one of the training.

    Raises:
        InputError: The folder holds no run, its models cannot be found, or the model is another
            one than the plug was trained with.
    """
    folder = expand_user(folder)
    own = (folder / REPORT).is_file() and folder.resolve().parent.name == PLUGS
    run = load_run(folder.resolve().parents[1] if own else folder)
    place = folder / PLUG if own else next(iter(run.plugs.values()))
    training = load_config(TrainingReport, place.parent / REPORT, []).training
    return RunPlug(run, training, load(place, model, dtype=dtype or run.config.pplug.weights))


def read_history(path: str | Path | None, task: str | lamp.Task, question: str) -> Histories:
    """Return one question of one user, with the history in a file.

    Args:
        path: JSON lines, one item each with the fields of the task and optionally a `date`, for
            all items or none; items with dates are sorted. A row with `chosen` and `rejected`, as
            in a preference file, is two items. None or an empty file means a new user.
        task: A name in `jaxalign.data.lamp.TASKS`, or a task.
        question: The input, or the part of it that differs between questions, such as an
            article.

    Raises:
        InputError: The file or the question cannot be used.
    """
    spec, question = lamp.task(task), lamp.format_question(task, question)
    own = None if spec.name in lamp.TASKS else spec
    items: list[Item] = []
    keys: list[tuple[int, ...]] = []
    if path is not None and not _blank(Path(path)):
        for row in _items(Path(path), spec):
            names = dict.fromkeys((*spec.fields, spec.label or spec.fields[0]))
            fields = {
                name: field_text(row.values, name, row.where, numbers=name == spec.label)
                for name in names
            }
            if items and row.has("date") != bool(keys):
                raise InputError(
                    f"{row.where}: `date` is {'missing' if keys else 'there'} and not so in the "
                    "first row, expected all or none; fill it in or leave it out."
                )
            date = None
            if row.has("date"):
                date = field_text(row.values, "date", row.where, numbers=True)
                keys.append(date_key(date, row.where))
            name = row.identifier("id") if row.has("id") else str(len(items))
            items.append(Item(name, fields, date))
    order = sorted(range(len(items)), key=keys.__getitem__) if keys else range(len(items))
    sample = Sample("1", "user", question, None, tuple(order))
    source = "--input" if path is None else str(path)
    return Histories((sample,), tuple(items), spec.name, source, own_task=own)


@contextmanager
def question_policies(
    opened: RunPlug, histories: Histories, store: str | Path | None = None, progress: bool = True
) -> Iterator[tuple[RowPolicies, list[PromptRow]]]:
    """Yield what completes each question, as `jaxalign.experiments.generate` takes it, and rows.

    Prompts are formatted as in the plug's training. Personas are made when rows are completed.

    Args:
        opened: A plug from `open_plug`.
        histories: N samples of the run's task; their outputs are ignored.
        store: Folder of a store to use instead of the run's; vectors of new items are added.
        progress: Show bars on standard error.

    Raises:
        InputError: The samples are of another task, or an item or question cannot be read.
    """
    run, plug = opened.run, opened.plug
    if histories.task != run.sources.task:
        raise InputError(
            f"{histories.source} is of the task {histories.task}, the plug of {run.sources.task}: "
            "give questions of its task."
        )
    with history_store(store or run.store, plug.encoder) as vectors:
        retriever = TRAININGS[opened.training].retriever
        questions = [sample.input for sample in histories.samples]
        if retriever is not None:
            chosen = retrieve_items(
                histories,
                retriever,
                run.config.retrieval.count,
                plug.text,
                plug.encoder,
                vectors,
                progress,
            )
            questions = build_questions(histories, chosen, plug.text, plug.model)
        rows = [
            PromptRow(
                sample.input,
                f"{histories.source}, question {sample.id!r}",
                {"id": sample.id, "user": sample.user},
            )
            for sample in histories.samples
        ]
        read = repr((histories.samples, histories.items))
        prompts = format_prompts(plug.model, plug.text, questions)
        starts = soft_starts(plug.model, plug.text, prompts, plug.persona.place)

        def arguments(chosen: Sequence[int]) -> GenerationArguments:
            found: GenerationArguments = {"prefix": prefixes(plug, histories.take(chosen), vectors)}
            if starts is not None:
                found["prefix_starts"] = starts[list(chosen)]
            return found

        yield (
            RowPolicies(
                plug.model,
                prompts,
                [{}] * len(rows),
                arguments,
                plug.persona.prefix_length,
                f"{tree_digest(plug.trained)} {plug.encoder.sha256} {read}",
            ),
            rows,
        )


def embed_question(
    opened: RunPlug, histories: Histories, store: str | Path | None = None
) -> np.ndarray:
    """Return a question with its persona as input embeddings, such as vLLM's `prompt_embeds`.

    Args:
        opened: A plug from `open_plug`.
        histories: One sample of the run's task.
        store: Folder of a store to use instead of the run's; vectors of new items are added.

    Returns:
        [T, D] embeddings of the whole prompt, soft tokens included, in the model's data type.

    Raises:
        InputError: As `question_policies`, or the prompt does not fit the model's context.
    """
    with question_policies(opened, histories, store, progress=False) as (policies, rows):
        model, arguments = policies.model, policies.arguments([0])
        ids = prompt_ids(model, policies.prompts[0], policies.soft_tokens, rows[0].where)
        start = 0 if (starts := arguments.get("prefix_starts")) is None else int(starts[0])
        return embed_with_soft_tokens(model, ids, np.asarray(arguments["prefix"])[0], start)


def embed_with_soft_tokens(
    model: LanguageModel, ids: Sequence[int], soft: np.ndarray, start: int
) -> np.ndarray:
    """Return a prompt with soft tokens as input embeddings.

    Args:
        model: The language model.
        ids: [T] tokens of the prompt.
        soft: [Q, D] soft tokens.
        start: Number of tokens of the prompt before them.

    Returns:
        [T + Q, D] in the model's data type.
    """
    width = bucket_length(len(ids), max(len(ids), model.config.positions))
    prompt = Prompt(
        padded([ids], (1, width)),
        np.asarray([len(ids)], np.int32),
        soft[None],
        np.asarray([len(soft)], np.int32),
        np.asarray([start], np.int32),
    )
    found = _embeddings(prompt, model.config, model.params)
    return np.asarray(found)[0, : len(ids) + len(soft)]


_embeddings = jax.jit(prompt_embeddings, static_argnums=1)


def _items(path: Path, task: lamp.Task) -> Iterator[Row]:
    """Yield the rows of a file of items, a choice as two rows."""
    for row in read_rows(path):
        for entry in in_words(row.values, task, row.where):
            if entry is row.values:
                yield row
            elif isinstance(entry, dict):
                yield row._replace(values=entry)


def _blank(path: Path) -> bool:
    """Return whether a file is there and empty."""
    return path.is_file() and not path.read_bytes().strip()
