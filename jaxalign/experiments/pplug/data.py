"""Reading the parts of a data set: LaMP's files, history files, and sets of real people."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from jaxalign.config_fields import checks_fields
from jaxalign.data.arguments import argued_choices
from jaxalign.data.headlines import huffpost
from jaxalign.data.histories import Histories, load_histories, load_lamp
from jaxalign.data.jokes import rated_jokes
from jaxalign.data.lamp import TASKS, Task
from jaxalign.errors import InputError
from jaxalign.files import expand_user
from jaxalign.progress import counted

Part = Literal["train", "validation", "test", "test_new"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
_FILES: Mapping[Part, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation", "dev"),
    "test": ("test",),
    "test_new": ("test_new",),
}
_LINES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")


@dataclass(frozen=True)
@checks_fields
class HistoryDataConfig:
    """The data set and which of its samples are used.

    Attributes:
        kind: Format of the data. `lamp` is a folder with LaMP's {train,dev,test}_questions.json
            and _outputs.json, or with such folders {train,dev,test}. `jsonl` is a folder with
            train.jsonl and optionally validation.jsonl and test.jsonl, or one file whose users are
            split. `huffpost` is the folder of the HuffPost set, split by time. `jester` is the
            folder of the Jester set, split by user, whose answers are ratings of jokes; the target
            jokes of its `test_new` occur nowhere else. `ukpconvarg1` is the folder of the
            UKPConvArg1 set, split by user, whose answers are which of two arguments convinces.
        task: Name of the task, such as LaMP_4; null reads it from LaMP's outputs, and means `text`
            for jsonl.
        own_task: A task of your own for jsonl, of which `task` is then the name or null: what
            items, questions and labels are, and which metrics are reported.
        train_samples: Largest number of training samples, drawn evenly over users, at least 1;
            null for all.
        validation_samples: Largest number of samples of the validation loss, at least 0; null for
            all, 0 for no validation.
        test_share: Share in (0, 1) held out for the test: of a file's users, or of each HuffPost
            author's articles.
        validation_share: The same for validation; the two shares sum to less than 1.
        most: HuffPost only: largest number of articles per author in each held-out part; null for
            no limit.
        least_history: HuffPost only: smallest number of items in the history of a sample.
        history: Jester and UKPConvArg1 only: number of rated jokes, or of reasons that the person
            wrote, in a history, at least 1.
        new_share: Jester only: share in (0, 1) of the jokes that occur in `test_new` alone.
        series: HuffPost only: keep recurring titles, which reveal the author.
        seed: Seed of the draws, at least 0.
    """

    kind: Literal["lamp", "jsonl", "huffpost", "jester", "ukpconvarg1"] = "lamp"
    task: str | None = None
    own_task: Task | None = None
    train_samples: int | None = None
    validation_samples: int | None = None
    test_share: float = 0.2
    validation_share: float = 0.1
    most: int | None = 20
    least_history: int = 3
    history: int = 16
    new_share: float = 0.2
    series: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("train_samples", 1), ("validation_samples", 0), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"data.{name} is {value}; expected at least {least}.")
        shares = (self.test_share, self.validation_share)
        if not (all(share > 0 for share in shares) and sum(shares) < 1):
            raise InputError(
                f"data.test_share is {shares[0]} and data.validation_share {shares[1]}; expected "
                "shares above 0 and below 1 in sum."
            )
        if self.has_own_task and self.task not in (None, self.kind):
            raise InputError(
                f"data.task is {self.task!r} and data.kind {self.kind}; expected no task: leave it "
                "out."
            )
        if not 0 < self.new_share < 1 or self.history < 1:
            raise InputError(
                f"data.new_share is {self.new_share} and data.history {self.history}; expected a "
                "share in (0, 1) and a history of at least 1."
            )
        self._check_own_task()

    def _check_own_task(self) -> None:
        own = self.own_task
        if own is None:
            return
        if self.kind != "jsonl" or self.task not in (None, own.name):
            raise InputError(
                f"data.own_task is {own.name!r} with data.kind {self.kind} and data.task "
                f"{self.task}; expected data.kind jsonl and no other task: change them."
            )
        if own.name in TASKS:
            raise InputError(
                f"data.own_task is named {own.name!r}, which is a task already; expected another "
                "name."
            )

    @property
    def has_own_task(self) -> bool:
        """Whether the kind of the data is the task."""
        return self.kind in ("huffpost", "jester", "ukpconvarg1")

    @property
    def rules(self) -> str | Task:
        """The task of history files: one of your own, or the name of another."""
        return self.own_task or self.task or "text"


def read_parts(
    source: str | Path, config: HistoryDataConfig, parts: Sequence[Part]
) -> dict[Part, Histories]:
    """Read parts of a data set; optional parts that are absent are left out.

    Args:
        source: A folder or file, in the format `config.kind`.
        config: Settings of the data.
        parts: The parts to read; the first one is required.

    Returns:
        All samples of each part.

    Raises:
        InputError: The first part is missing, or a file cannot be used; see `load_lamp`,
            `load_histories` and `huffpost`.
    """
    path = expand_user(source)
    if not path.exists():
        raise InputError(f"{path} does not exist; check --data.")
    found: dict[Part, Histories] = {}
    if config.kind == "huffpost":
        split = huffpost(
            path, config.test_share, config.validation_share, config.most,
            config.least_history, config.series,
        )  # fmt: skip
        found = {part: getattr(split, part) for part in parts if part in PARTS}
    elif config.kind == "jester":
        jokes = rated_jokes(
            path, config.test_share, config.validation_share, config.history, config.new_share,
            config.seed,
        )  # fmt: skip
        found = {part: getattr(jokes, part) for part in parts}
    elif config.kind == "ukpconvarg1":
        argued = argued_choices(
            path, config.test_share, config.validation_share, config.history, config.seed
        )
        found = {part: argued[part] for part in parts if part in argued}
    elif config.kind == "jsonl" and path.is_file():
        whole = _by_user(load_histories(path, config.rules), config)
        found = {part: whole[part] for part in parts if part in whole}
    else:
        reader = _lamp if config.kind == "lamp" else _lines
        for part in parts:
            if (one := reader(path, part, config)) is not None:
                found[part] = one
    split_here = config.has_own_task or (config.kind == "jsonl" and path.is_file())
    if parts[0] not in found and split_here:
        raise InputError(
            f"data.kind {config.kind} has no part {parts[0]}, expected train, validation or test; "
            "choose another with --split."
        )
    if parts[0] not in found:
        names = " or ".join(_FILES[parts[0]])
        wanted = f"{names}_questions.json" if config.kind == "lamp" else f"{names}.jsonl"
        raise InputError(
            f"{path} holds no {wanted}, which data.kind {config.kind} needs for the part "
            f"{parts[0]}; check --data and data.kind."
        )
    return found


def sample_evenly(histories: Histories, count: int | None, seed: int) -> Histories:
    """Return some of the samples in their order, drawn as evenly over users as possible.

    Args:
        histories: N samples.
        count: Number of samples; None, or more than there are, for all.
        seed: Seed of the draw. A larger count contains the samples of a smaller one.
    """
    if count is None or count >= len(histories):
        return histories
    rng = np.random.Generator(np.random.PCG64([seed, 0x5A]))
    drawn = rng.permutation(len(histories))
    seen: dict[str, int] = defaultdict(int)
    turns = np.zeros(len(histories), np.int64)
    for row in drawn:
        user = histories.samples[row].user
        turns[row] = seen[user]
        seen[user] += 1
    order = drawn[np.argsort(turns[drawn], kind="stable")]
    return histories.take(np.sort(order[:count]))


def data_digest(histories: Histories | None) -> str:
    """Return a SHA-256 of everything in the samples; that of nothing for None."""
    found = hashlib.sha256()
    if histories is not None:
        found.update(histories.task.encode())
        if histories.own_task is not None:
            found.update(repr(histories.own_task).encode())
        for item in histories.items:
            found.update(json.dumps([item.id, item.date, sorted(item.fields.items())]).encode())
        for one in histories.samples:
            row = [one.id, one.user, one.input, one.output, one.profile, one.category, one.date]
            found.update(json.dumps(row).encode())
    return found.hexdigest()


def _lamp(folder: Path, part: Part, config: HistoryDataConfig) -> Histories | None:
    questions = _first(folder, part, "_questions", (".json", ".json.gz"))
    if questions is None:
        return None
    outputs = _first(folder, part, "_outputs", (".json", ".json.gz"))
    if outputs is None and part == "train":
        raise InputError(
            f"{questions} has no train_outputs.json beside it, expected one for training; give "
            "the folder that holds both."
        )
    return load_lamp(questions, outputs, config.task)


def _lines(folder: Path, part: Part, config: HistoryDataConfig) -> Histories | None:
    path = _first(folder, part, "", _LINES)
    return None if path is None else load_histories(path, config.rules)


def _first(folder: Path, part: Part, suffix: str, ends: Sequence[str]) -> Path | None:
    """The file of a part, in the folder or in one of the part's name."""
    for name in _FILES[part]:
        for place in (folder, folder / name):
            for end in ends:
                if (path := place / f"{name}{suffix}{end}").is_file():
                    return path
    return None


def _by_user(histories: Histories, config: HistoryDataConfig) -> dict[Part, Histories]:
    """Split samples by user into parts."""
    users = sorted(set(histories.users))
    if len(users) < 3:
        raise InputError(
            f"{histories.source} has samples of {counted(len(users), 'user')}, of whom none can be "
            "held out; expected at least 3, or a folder with train.jsonl."
        )
    order = np.random.Generator(np.random.PCG64([config.seed, 0x5B])).permutation(len(users))
    test = max(1, round(config.test_share * len(users)))
    held_out = test + max(1, round(config.validation_share * len(users)))
    rank = {users[row]: place for place, row in enumerate(order)}
    own: dict[Part, list[int]] = {part: [] for part in PARTS}
    for row, user in enumerate(histories.users):
        part: Part = "train"
        if rank[user] < held_out:
            part = "test" if rank[user] < test else "validation"
        own[part].append(row)
    if not own["train"]:
        raise InputError(
            f"{histories.source}: found {len(users)} users and none left to train on; lower "
            "data.test_share and data.validation_share."
        )
    return {
        part: replace(histories.take(rows), source=f"{histories.source} ({part})")
        for part, rows in own.items()
    }
