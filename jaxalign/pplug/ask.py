"""Answers of a trained plug for people outside its data: a history and a question, or a file."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxalign.data import lamp
from jaxalign.data.files import read_json_lines
from jaxalign.data.histories import Histories, Item, Sample
from jaxalign.data.records import date_key, identity, text_of
from jaxalign.errors import InputError
from jaxalign.models.chat import Completion
from jaxalign.models.encoder_files import read_json
from jaxalign.models.sampling import Sampling
from jaxalign.pplug.controls import RUNS
from jaxalign.pplug.files import ABOUT, load
from jaxalign.pplug.generate import answer
from jaxalign.pplug.model import PPlug
from jaxalign.pplug.questions import nearest, questions
from jaxalign.pplug.run import PLUG, PLUGS, REPORT, Trained, load_run
from jaxalign.pplug.store import history_store


class Plugged(NamedTuple):
    """A trained plug and the run that it is of."""

    run: Trained
    name: str
    plug: PPlug


def open_plug(folder: str | Path) -> Plugged:
    """Read a run's plug.

    Args:
        folder: of a run, whose first `pplug` is taken, or else its first training; or of one
            training in it, such as runs/pplug/plugs/task-0.

    Raises:
        InputError: no such run, or its models cannot be found.
    """
    folder = Path(folder).expanduser()
    own = (folder / PLUG / ABOUT).is_file() and folder.resolve().parent.name == PLUGS
    run = load_run(folder.resolve().parents[1] if own else folder)
    place = folder / PLUG if own else next(iter(run.plugs.values()))
    name = read_json(place.parent / REPORT, required=True)["run"]
    return Plugged(run, name, load(place, dtype=run.config.pplug.weights))


def read_history(path: str | Path | None, task: str, question: str) -> Histories:
    """A question of one user, with what the user wrote.

    Args:
        path: JSON lines, an item each with the task's fields and, all or none, a `date`; with
            dates they are put in order. None, or a file without lines, for a new user.
        task: a name in `jaxalign.data.lamp.TASKS`.
        question: the input, or of it what the task asks about, such as an article.

    Raises:
        InputError: the file or the question cannot be used.
    """
    told, question = lamp.task(task), lamp.format_question(task, question)
    items, keys = [], []
    if path is not None and not _blank(Path(path)):
        rows, lines = read_json_lines(Path(path))
        for row, line in zip(rows, lines, strict=True):
            where = f"{path}, line {line}"
            names = dict.fromkeys((*told.fields, told.label or told.fields[0]))
            fields = {name: text_of(row, name, where, numbers=name == told.label) for name in names}
            date = row.get("date")
            if (date is None) != (rows[0].get("date") is None):
                raise InputError(
                    f"{where}: `date` is {'missing' if date is None else 'there'} and not so in "
                    "the first line, expected all or none; fill it in or leave it out."
                )
            if date is not None:
                date = text_of(row, "date", where, numbers=True)
                keys.append(date_key(date, where))
            name = str(line) if row.get("id") is None else identity(row, where)
            items.append(Item(name, fields, date))
    order = sorted(range(len(items)), key=keys.__getitem__) if keys else range(len(items))
    asked = Sample("1", "user", question, None, tuple(order))
    return Histories((asked,), tuple(items), task, str(path))


def answers(
    plugged: Plugged,
    histories: Histories,
    settings: Sampling,
    key: jax.Array,
    store: str | Path | None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> list[Completion]:
    """An answer to each question, prompts written as the plug was trained.

    Args:
        plugged: as from `open_plug`.
        histories: N samples of the run's task; outputs are not looked at.
        settings: how tokens are drawn.
        key: random key.
        store: of vectors, in place of the run's; new items are added.
        batch_size: most samples at once.
        progress: show bars on stderr.

    Raises:
        InputError: samples of another task, or as `jaxalign.pplug.answer`.
    """
    run, plug = plugged.run, plugged.plug
    if histories.task != run.sources["task"]:
        raise InputError(
            f"{histories.source} asks for {histories.task}, the plug is of {run.sources['task']}: "
            "give questions of its task."
        )
    with ExitStack() as stack:
        opened = stack.enter_context(history_store(store or run.store, plug.encoder))
        by, asked = RUNS[plugged.name].retrieval, None
        if by is not None:
            count = run.config.retrieval.count
            chosen = nearest(histories, by, count, plug.text, plug.encoder, opened, progress)
            asked = questions(histories, chosen, plug.text, plug.model)
        told: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
        return answer(plug, histories, settings, key, store=opened, questions=asked, **told)


def rows(histories: Histories, said: Sequence[Completion]) -> list[dict[str, Any]]:
    """What is written of each answer."""
    return [
        {
            "id": one.id,
            "user": one.user,
            "text": found.text.strip(),
            "tokens": len(found.tokens),
            "logprob": round(float(found.logprobs.sum()), 6),
            "stopped": found.stopped,
        }
        for one, found in zip(histories.samples, said, strict=True)
    ]


def _blank(path: Path) -> bool:
    """Whether a file is there and holds nothing."""
    return path.is_file() and not path.read_bytes().strip()
