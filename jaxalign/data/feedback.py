"""PRISM and Reddit TL;DR: people's choices between answers, cut as the MRM authors cut them.

Both come from the Hub by name, or from a folder of the same files.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from jaxalign.data.files import encode, later_reversals
from jaxalign.data.messages import Conversation
from jaxalign.data.preferences import ChoiceSource, Preferences
from jaxalign.data.tables import read_rows
from jaxalign.data.values import first_line
from jaxalign.errors import InputError
from jaxalign.files import expand_user
from jaxalign.progress import counted

PRISM = "HannahRoseKirk/prism-alignment"
REDDIT = "openai/summarize_from_feedback"
_ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".parquet")
# The Hub's own copy of data sets that were published as a script, which `datasets` no longer runs.
_CONVERTED = "refs/convert/parquet"


Kind = TypeVar("Kind")


class _Choice(NamedTuple):
    """One choice: what was said before the two answers, user first."""

    user: str
    before: tuple[str, ...]
    chosen: str
    rejected: str
    group: str
    held_out: bool = False


def prism(source: str | Path = PRISM, least_conversations: int = 6) -> ChoiceSource:
    """Read PRISM: four models' answers to a person's prompts (Kirk et al., arXiv 2404.16019).

    Every answer that was not chosen in a turn makes a choice against the one that was; what was
    said before it is the prompt, and the conversation is the group. Turns without both are left
    out, as the MRM authors have it.

    Args:
        source: the name on the Hub; or a folder that holds conversations.jsonl (.gz, .parquet),
            or that file: `conversation_id`, `user_id` and `conversation_history`, a list of
            {turn, role, content, if_chosen}, the role of a person being `user`.
        least_conversations: users with fewer that have a choice are left out; with 6, as in the
            paper, 1,288 stay.

    Returns:
        The choices, items keyed by a hash of what an encoder reads.

    Raises:
        InputError: the source cannot be found or read, a field is missing, or nobody is left.
    """
    found: dict[str, dict[str, list[_Choice]]] = defaultdict(dict)
    for where, row in _rows(source, "conversations", ("train",)):
        user = _field(row, "user_id", str, where)
        conversation = _field(row, "conversation_id", str, where)
        history: list[object] = _field(row, "conversation_history", list, where)
        if choices := [*_of_conversation(history, user, conversation, where)]:
            found[user].setdefault(conversation, []).extend(choices)
    kept = [talks for talks in found.values() if len(talks) >= least_conversations]
    if not kept:
        most = max(map(len, found.values()), default=0)
        raise InputError(
            f"{source}: no user has {least_conversations} conversations with a choice (the most "
            f"are {most}); lower least_conversations, or check that the file is whole."
        )
    return _source((choice for talks in kept for talk in talks.values() for choice in talk), source)


def _of_conversation(
    history: list[object], user: str, conversation: str, where: str
) -> Iterator[_Choice]:
    turns: dict[int, tuple[list[str], list[str], list[str]]] = {}
    for number, said in enumerate(history, 1):
        place = f"{where}, `conversation_history` entry {number}"
        if not isinstance(said, Mapping):
            raise InputError(f"{place}: found {str(said)[:40]}, expected an object.")
        prompts, chosen, rejected = turns.setdefault(_field(said, "turn", int, place), ([], [], []))
        text = _field(said, "content", str, place)
        if _field(said, "role", str, place) == "user":
            prompts.append(text)
        else:
            (chosen if _field(said, "if_chosen", bool, place) else rejected).append(text)
    before: tuple[str, ...] = ()
    for _, (prompts, chosen, rejected) in sorted(turns.items()):
        if not (prompts and chosen and rejected):
            continue
        before = (*before, prompts[0])
        for other in rejected:
            yield _Choice(user, before, chosen[0], other, conversation)
        before = (*before, chosen[0])


def reddit(source: str | Path = REDDIT) -> ChoiceSource:
    """Read comparisons of summaries of Reddit posts (Stiennon et al., arXiv 2009.01325), by worker.

    The workers who are in both splits of the source are the users; a user's rows of the split
    `validation` are held out to judge on, as the MRM authors have it. The prompt is the post (the
    article, for a news summary).

    Args:
        source: the name on the Hub (configuration `comparisons`); or a folder that holds train and
            validation as .jsonl (.gz) or .parquet, perhaps under comparisons/: `worker`, `choice`
            (0 or 1), `summaries`, a list of two {text}, and `info`, a {post} or {article}.

    Returns:
        The choices, items keyed by a hash of what an encoder reads.

    Raises:
        InputError: the source cannot be found or read, a field is missing, or no worker is in both
            splits.
    """
    splits = ("train", "validation")
    of_user: dict[str, list[_Choice]] = defaultdict(list)
    for number, split in enumerate(splits):
        for where, row in _rows(source, "comparisons", (split,)):
            choice = _comparison(row, where, held_out=bool(number))
            of_user[choice.user].append(choice)
    both = [choices for choices in of_user.values() if len({c.held_out for c in choices}) == 2]
    if not both:
        raise InputError(
            f"{source}: none of its {len(of_user)} workers is in both train and validation, "
            "expected at least one; check that the two files belong together."
        )
    return _source((choice for choices in both for choice in choices), source)


def _comparison(row: Mapping[str, object], where: str, held_out: bool) -> _Choice:
    worker = _field(row, "worker", str, where)
    choice = _field(row, "choice", int, where)
    summaries: list[object] = _field(row, "summaries", list, where)
    if len(summaries) != 2 or choice not in (0, 1):
        raise InputError(
            f"{where}: found {len(summaries)} `summaries` and `choice` {choice}, expected two and "
            "0 or 1."
        )
    texts = [_field(summary, "text", str, f"{where}, `summaries`") for summary in summaries]
    info: dict[str, object] = _field(row, "info", dict, where)
    post = info.get("post") or info.get("article")
    if not isinstance(post, str):
        raise InputError(f"{where}, `info`: `post` is missing, expected text; correct the row.")
    return _Choice(worker, (post,), texts[choice], texts[1 - choice], where, held_out)


# From choices to the table ----------------------------------------------------------------------


def _source(choices: Iterable[_Choice], source: str | Path) -> ChoiceSource:
    """Table of the choices; those that are none, or contradict an earlier one, are left out."""
    everything = list(choices)
    kept = [
        c for c in everything if c.chosen != c.rejected and _real(c.chosen) and _real(c.rejected)
    ]
    if not kept:
        raise InputError(f"{source} holds no choice between two different texts.")
    items: dict[tuple[str, ...], int] = {}
    pairs = np.empty((2, len(kept)), np.int32)
    for row, choice in enumerate(kept):
        for side, answer in enumerate((choice.chosen, choice.rejected)):
            pairs[side, row] = items.setdefault((*choice.before, answer), len(items))
    user, users = encode([choice.user for choice in kept])
    prompt, _ = encode([json.dumps(choice.before) for choice in kept])
    group, _ = encode([json.dumps([choice.user, choice.group]) for choice in kept])
    held_out = np.array([choice.held_out for choice in kept])
    table = Preferences(
        users, tuple(map(_key, items)), tuple(map(Conversation, items)),
        user, pairs[0], pairs[1], group, prompt, np.zeros(len(kept), bool),
        source=str(source), held_out=held_out if held_out.any() else None,
    )  # fmt: skip
    fine = np.ones(len(kept), bool)
    fine[later_reversals(user, pairs[0], pairs[1])[0]] = False
    table = table if fine.all() else table.take(fine)
    dropped = len(everything) - len(table)
    if dropped:
        note = (
            f"{counted(dropped, 'choice')} left out: both answers are the same, one is empty, or "
            "the user had chosen the other way before"
        )
        table = replace(table, notes=(note,))
    return ChoiceSource(table, dropped=dropped)


def _real(text: str) -> bool:
    return bool(text.strip())


def _key(turns: tuple[str, ...]) -> str:
    """The same in every selection of the rows, so that features fit any of them."""
    return hashlib.sha256(json.dumps(turns).encode()).hexdigest()[:20]


# From files or the Hub to rows --------------------------------------------------------------------


def recognise(source: str | Path) -> str:
    """`prism` or `reddit` by the name on the Hub or by the files of a folder, else nothing."""
    if str(source) in (PRISM, REDDIT):
        return "prism" if str(source) == PRISM else "reddit"
    path = expand_user(source)
    if path.is_dir():
        if _file(path, "conversations"):
            return "prism"
        if all(_file(_comparisons(path), split) for split in ("train", "validation")):
            return "reddit"
    elif path.is_file() and path.name in [f"conversations{ending}" for ending in _ENDINGS]:
        return "prism"
    return ""


def _comparisons(folder: Path) -> Path:
    inner = folder / "comparisons"
    return inner if inner.is_dir() else folder


def _file(folder: Path, stem: str) -> Path | None:
    return next((p for end in _ENDINGS if (p := folder / f"{stem}{end}").is_file()), None)


def _rows(
    source: str | Path, config: str, splits: tuple[str, ...]
) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Place and content of every row, from a file, a folder or the Hub."""
    path = expand_user(source)
    if not path.exists() and isinstance(source, str) and source in (PRISM, REDDIT):
        for split in splits:
            for number, row in enumerate(_from_hub(source, config, split), 1):
                yield f"{source}/{config}:{split}, row {number}", row
        return
    for split in splits:
        stem, folder = (config, path) if config == "conversations" else (split, _comparisons(path))
        file = path if path.is_file() else _file(folder, stem)
        if file is None:
            raise InputError(
                f"{folder} has no {stem}.jsonl or {stem}.parquet; check the folder, or give "
                f"{PRISM if config == 'conversations' else REDDIT} to load it from the Hub."
            )
        yield from ((row.where, row.values) for row in read_rows(file))


def _from_hub(name: str, config: str, split: str) -> Iterable[Mapping[str, object]]:
    import datasets  # slow to import, and only the Hub needs it

    readings: tuple[dict[str, object], ...] = (
        {"name": config},
        {"data_dir": config, "revision": _CONVERTED},
    )
    reasons = []
    for reading in readings:
        try:
            rows: Iterable[Mapping[str, object]] = datasets.load_dataset(
                name, split=split, **reading
            )
            return rows
        except Exception as error:  # loaders raise what they like
            reasons.append(f"{type(error).__name__}: {first_line(error)}")
    raise InputError(
        f"{name} ({config}, split {split}) cannot be loaded from the Hub ({reasons[0]}); check the "
        "network, or download its files and give their folder."
    )


def _field(row: object, name: str, kind: type[Kind], where: str) -> Kind:
    value = row.get(name) if isinstance(row, Mapping) else None
    # To Python, True is a whole number; to a reader of `turn` or `choice` it is a mistake.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        expected: dict[type, str] = {
            str: "text",
            int: "a whole number",
            bool: "true or false",
            list: "a list",
        }
        found = "missing" if value is None else repr(value)[:40]
        raise InputError(
            f"{where}: `{name}` is {found}, expected {expected.get(kind, 'an object')}; correct "
            "the row, or give the data set's own file."
        )
    return value
