"""Answers of a trained plug to new questions: one question with a history, or a file of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from jaxalign.config import load_config
from jaxalign.data import lamp
from jaxalign.data.dates import date_key
from jaxalign.data.histories import Histories, Item, Sample
from jaxalign.data.prompt_rows import PromptRow
from jaxalign.data.tables import read_rows
from jaxalign.data.values import field_text
from jaxalign.errors import InputError
from jaxalign.experiments.generate import RowPolicies, tree_digest
from jaxalign.experiments.pplug.baselines import TRAININGS
from jaxalign.experiments.pplug.run_folder import PLUG, PLUGS, PPlugRun, TrainingReport, load_run
from jaxalign.pplug.files import load
from jaxalign.pplug.model import PPlug, prefixes
from jaxalign.pplug.retrieval import build_questions, retrieve_items
from jaxalign.pplug.rows import format_prompts
from jaxalign.pplug.store import history_store
from jaxalign.runs.run_dir import REPORT


class RunPlug(NamedTuple):
    """A trained plug and the run that it belongs to."""

    run: PPlugRun
    training: str
    plug: PPlug


def open_plug(folder: str | Path) -> RunPlug:
    """Read a plug of a run.

    Args:
        folder: Folder of a run, whose first plug is read, or of one training in it, such as
            runs/pplug/plugs/task-0.

    Raises:
        InputError: The folder holds no run, or its models cannot be found.
    """
    folder = Path(folder).expanduser()
    own = (folder / REPORT).is_file() and folder.resolve().parent.name == PLUGS
    run = load_run(folder.resolve().parents[1] if own else folder)
    place = folder / PLUG if own else next(iter(run.plugs.values()))
    training = load_config(TrainingReport, place.parent / REPORT, []).training
    return RunPlug(run, training, load(place, dtype=run.config.pplug.weights))


def read_history(path: str | Path | None, task: str, question: str) -> Histories:
    """Return one question of one user, with the history in a file.

    Args:
        path: JSON lines, one item each with the fields of the task and optionally a `date`, for
            all items or none; items with dates are sorted. None or an empty file means a new user.
        task: A name in `jaxalign.data.lamp.TASKS`.
        question: The input, or the part of it that the task asks about, such as an article.

    Raises:
        InputError: The file or the question cannot be used.
    """
    spec, question = lamp.task(task), lamp.format_question(task, question)
    items: list[Item] = []
    keys: list[tuple[int, ...]] = []
    if path is not None and not _blank(Path(path)):
        for row in read_rows(Path(path)):
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
            name = row.identifier("id") if row.has("id") else str(row.place)
            items.append(Item(name, fields, date))
    order = sorted(range(len(items)), key=keys.__getitem__) if keys else range(len(items))
    sample = Sample("1", "user", question, None, tuple(order))
    return Histories((sample,), tuple(items), task, str(path))


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
            f"{histories.source} asks for {histories.task}, the plug is of {run.sources.task}: "
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
        yield (
            RowPolicies(
                plug.model,
                format_prompts(plug.model, plug.text, questions),
                [{}] * len(rows),
                lambda chosen: {"prefix": prefixes(plug, histories.take(chosen), vectors)},
                plug.persona.prefix_length,
                f"{tree_digest(plug.trained)} {plug.encoder.sha256} {read}",
            ),
            rows,
        )


def _blank(path: Path) -> bool:
    """Return whether a file is there and empty."""
    return path.is_file() and not path.read_bytes().strip()
