"""A file of choices to a file of users, in bounded memory: stopped at any moment, and resumed."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxalign.config_fields import checks_fields
from jaxalign.data import Features, Preferences, load_source
from jaxalign.data.bad_rows import OnBadRow
from jaxalign.data.choice_parts import ChoiceParts, items_of, open_parts, write_parts
from jaxalign.data.columns import Origin
from jaxalign.data.files import Remarks, find_remarks
from jaxalign.data.numbering import ChoiceColumns, number_choices
from jaxalign.data.ratings import check_scales, on_scales
from jaxalign.data.sources import recognise
from jaxalign.errors import InputError
from jaxalign.files import expand_user, move_into_place
from jaxalign.mrm.adapting import about_users, adapt_into, adapt_users, item_table, refuse_known
from jaxalign.mrm.model import UserModel
from jaxalign.mrm.registry import require
from jaxalign.mrm.serving import item_features, require_text
from jaxalign.progress import track
from jaxalign.runs import RunDir
from jaxalign.runs.file_run import open_file_run, run_folder
from jaxalign.runs.run_dir import REPORT, Identity
from jaxalign.runs.stop import StopRequest, stop_request
from jaxalign.runs.user_store import UserStore, create_users, open_users, refuse_foreign_file

KIND = "mrm adapt"
_PARTS, _USERS = "choices.arrow", "users.sqlite"


class AdaptedFile(NamedTuple):
    """What `adapt_file` gives.

    Attributes:
        users: the open file of users.
        notes: what reading the choices dropped or found remarkable, a sentence each.
    """

    users: UserStore
    notes: tuple[str, ...]


@dataclass(frozen=True)
@checks_fields
class AdaptConfig:
    """What decides the file of users, beside the model and the choices.

    Attributes:
        update: whether the users are added to those of an earlier file.
        accuracy: whether the held-out accuracy is measured.
        on_bad_row: what is done with rows that cannot be used.
    """

    update: bool = False
    accuracy: bool = True
    on_bad_row: OnBadRow = "refuse"


def adapt_file(
    model: UserModel,
    source: str,
    out: str | Path,
    features: Features | None = None,
    config: AdaptConfig | None = None,
    resume: bool = False,
    progress: bool = False,
) -> AdaptedFile:
    """Adapt every user of a file of choices, in bounded memory, and write the file of users.

    The choices are put on disk by user first. Their users are then adapted group by group, and each
    group is kept in the folder of the run beside `out` until all of them are there.

    Args:
        model: a trained model.
        source: file, folder or name of a data set, as of `load_source`. Folders of known data sets
            are read whole.
        out: file to write; an older file of users is replaced at the end.
        features: of the items by id; without it the texts are encoded.
        config: how the users are adapted; see `adapt_users`.
        resume: whether to go on with a run that was stopped.
        progress: whether to show bars on standard error.

    Raises:
        InputError: as `adapt_users`; `out` is another file; or a stopped run is another one, or
            `resume` is not set.
        KeyboardInterrupt: the run was asked to stop, and what it has done so far is kept.
    """
    config, out = config or AdaptConfig(), expand_user(out)
    require(model.method, "new_items", "adapt")
    refuse_foreign_file(out)
    if features is None:
        require_text(model)
    if recognise(source) != "file":
        if resume:
            raise InputError(f"{source} is adapted in one piece: leave --resume out.")
        ratings = model.scales is not None
        choices = load_source(source, on_bad_row=config.on_bad_row, ratings=ratings).choices
        settings = (config.update, config.accuracy, progress)
        return AdaptedFile(adapt_users(model, choices, features, out, *settings), choices.notes)
    old = open_users(out, model.digest) if config.update else None
    identity: dict[str, Identity] = {
        "model": model.digest,
        "choices": _file_digest(source),
        "features": "" if features is None else [json.dumps(features.ids), features.values],
    }
    if old is not None:
        identity["users"] = json.dumps(asdict(old.about))
    with _earlier_kept(run_folder(out), resume):
        run = open_file_run(out, KIND, config, identity, _is_whole, resume)
        if run.finished:
            return AdaptedFile(open_users(out, model.digest), ())
        parts = _read_parts(run, model, source, features, config, old, progress)
    with stop_request() as stop:
        remarks = _adapt_parts(run, model, parts, features, config, old, stop, progress)
        if not stop.asked:
            _finish(run, out, old)
    if old is not None:
        old.close()
    notes = (*parts.notes, *remarks.sentences(lambda row: f"{parts.unit} {row}"))
    return AdaptedFile(open_users(out, model.digest), notes)


@contextmanager
def _earlier_kept(folder: Path, resume: bool) -> Iterator[None]:
    """Keep the folder of an earlier, finished run until the choices of this one are read."""
    kept = folder.with_name(f"{folder.name}.earlier")
    shutil.rmtree(kept, ignore_errors=True)
    if resume or not (folder / REPORT).exists():
        yield
        return
    shutil.move(folder, kept)
    try:
        yield
    except InputError:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.move(kept, folder)
        raise
    shutil.rmtree(kept)


def _is_whole(path: Path, report: object) -> bool:
    try:
        users = open_users(path)
    except InputError:
        return False
    return report == {"about": _stated(users)}


def _stated(users: UserStore) -> object:
    stated: object = json.loads(json.dumps(asdict(users.about)))
    return stated


def _file_digest(source: str) -> str:
    if not expand_user(source).is_file():
        return source
    with open(source, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_parts(
    run: RunDir,
    model: UserModel,
    source: str,
    features: Features | None,
    config: AdaptConfig,
    old: UserStore | None,
    progress: bool,
) -> ChoiceParts:
    """The choices by user, written where that has not been done; a run without any is undone."""
    path = run.state / _PARTS
    if (parts := open_parts(path)) is not None:
        return parts
    try:
        check = _ItemCheck(model, features)
        reads = model.scales is not None
        parts = write_parts(path, source, config.on_bad_row, check, progress, reads)
        if old is not None:
            refuse_known(old, parts.digest)
    except InputError:
        shutil.rmtree(run.path)
        raise
    return parts


class _ItemCheck:
    """Refuses items without features and unknown scales, before any user is adapted."""

    def __init__(self, model: UserModel, features: Features | None) -> None:
        self._model, self._features = model, features
        self._known: set[str] = set()
        if features is None:
            return
        finite = np.isfinite(features.values).all(axis=1)
        self._known = {key for key, fine in zip(features.ids, finite, strict=True) if fine}
        if not finite.any():
            return
        first = int(np.argmax(finite))  # a row that can be used at all
        item_table(model, item_features(model, [features.ids[first]], [""], features))

    def __call__(self, block: ChoiceColumns) -> None:
        scales, details = self._model.scales, block.details
        if scales is not None and details is not None:
            check_scales(np.stack([details.low, details.high], axis=1), scales, block.origin.at)
        if self._features is None:
            return
        for key, text in items_of(block):
            if text not in self._known and key not in self._known:
                choices = number_choices(block)
                item_features(self._model, choices.items, choices.texts, self._features)


def _adapt_parts(
    run: RunDir,
    model: UserModel,
    parts: ChoiceParts,
    features: Features | None,
    config: AdaptConfig,
    old: UserStore | None,
    stop: StopRequest,
    progress: bool,
) -> Remarks:
    """Adapt the users of each group of parts that has not been adapted, and keep them."""
    path, users, groups = run.state / _USERS, None, parts.groups()
    if path.exists():
        users = open_users(path, model.digest)
    found: list[Remarks] = []
    done = 0 if users is None else users.progress
    for number, (choices, origin) in _each(parts, groups, done, progress):
        if model.scales is not None:
            choices = on_scales(choices, model.scales)
        values = item_features(model, choices.items, choices.texts, features)
        table = item_table(model, values)
        if users is None:
            users = create_users(about_users(model, table, parts.digest), path, durable=True)
        with users.changing():
            adapt_into(users, model, choices, table, config.accuracy, old)
            users.progress = number + 1
        found.append(_placed(find_remarks(choices), origin))
        if stop.asked:
            break
    if users is not None:
        users.close()
    return _sum(found)


def _each(
    parts: ChoiceParts, groups: Sequence[range], done: int, progress: bool
) -> Iterator[tuple[int, tuple[Preferences, Origin]]]:
    """Number and choices of each group that is left, with a bar over the choices."""
    left = groups[done:]
    total = sum(sum(parts.rows[group.start : group.stop]) for group in left)
    read = ((done + number, parts.read(group)) for number, group in enumerate(left))
    return track("adapting users, by choices", read, total, lambda one: len(one[1][0]), progress)


def _placed(remarks: Remarks, origin: Origin) -> Remarks:
    """Remarks whose rows are the places of the source."""
    if not remarks.reversed or origin.lines is None:
        return remarks
    first, later = remarks.rows
    return remarks._replace(rows=(int(origin.lines[first]), int(origin.lines[later])))


def _sum(found: Sequence[Remarks]) -> Remarks:
    rows = [one.rows for one in found if one.reversed]
    return Remarks(
        sum(one.repeated for one in found),
        sum(one.reversed for one in found),
        min(rows, key=lambda pair: pair[1], default=(-1, -1)),
    )


def _finish(run: RunDir, out: Path, old: UserStore | None) -> None:
    """Give the users their place, in a file of their own or among those of an earlier file."""
    path = run.state / _USERS
    staged = open_users(path)
    staged.progress = 0
    staged.close()
    if old is None:
        move_into_place(path, out)
    else:
        old.put_all(path)
    run.finish({"about": _stated(open_users(out))})
    shutil.rmtree(run.state)
