"""The folder of a run: which run it holds, its stages, and whether the run is finished.

`run.json` names the run, `state/` holds what a resumed run reads back, and `report.json` is
written last of all: a folder without it holds an unfinished run.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxalign.config import resume_rules
from jaxalign.errors import InputError
from jaxalign.files import check_output, expand_user, read_json, write_json
from jaxalign.recognise import recognise
from jaxalign.runs.artifact import Arrays, Tree, load_arrays, save_arrays, unflatten
from jaxalign.runs.processes import check_same, gather_values, on_first_process
from jaxalign.version import __version__

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MARKER, REPORT, STATE = "run.json", "report.json", "state"
ANOTHER = "give a new folder with --out"
_LISTED = 3  # differences to another run that a message names

Identity = str | np.ndarray | Sequence[str | np.ndarray]


@dataclass(frozen=True)
class RunDir:
    """The folder of one run.

    Attributes:
        path: of the folder.
        kind: of the run, such as "mrm train".
        fingerprint: sha256 over all that decides the result but the fields that a resumed run may
            change, in hexadecimal.
        changes: the fields that this resumed run has changed, with what they were and are.
    """

    path: Path
    kind: str
    fingerprint: str
    changes: Mapping[str, str] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether the run has written its report, and so everything before it."""
        return (self.path / REPORT).exists()

    @property
    def state(self) -> Path:
        """Folder of what a resumed run reads back; created at the first use."""
        folder = self.path / STATE
        folder.mkdir(exist_ok=True)
        return folder

    def stage(
        self, name: str, compute: Callable[[], Tree], say: Callable[[str], None] = lambda text: None
    ) -> Arrays:
        """Compute a part of the run once, and read it back when the run is resumed.

        Args:
            name: of the part; it is kept in state/NAME.safetensors.
            compute: returns nested dicts of arrays or texts.
            say: called with one line for people.

        Returns:
            The part as it was read back from the disk, whether it is new or old, so that a
            resumed run goes on from the same numbers.
        """
        path = self.state / f"{name}.safetensors"
        if on_first_process(path.exists):
            say(f"{name}: kept from before")
        else:
            say(name)
            tree = compute()
            on_first_process(lambda: save_arrays(path, tree))
        return unflatten(load_arrays(path))

    def finish(self, report: Mapping[str, object]) -> None:
        """Write report.json, which marks the run as finished: call it after every other file.

        Args:
            report: what `json.dumps` takes, without NaN.
        """
        on_first_process(lambda: write_json(self.path / REPORT, report))


def open_run_dir(
    out: str | Path,
    kind: str,
    config: "DataclassInstance",
    identity: Mapping[str, Identity] | None = None,
    resume: bool = False,
    discard: Callable[[Path, Mapping[str, str]], None] = lambda state, changes: None,
) -> RunDir:
    """Open a new folder for a run, or the folder of the same run to resume it.

    Of several processes that make one run, all make the call, and the first one writes.

    A run is the same if its kind, version, settings and `identity` are. Fields of the settings that
    `jaxalign.config.on_resume` declares may have changed; a finished run that is resumed with other
    ones is unfinished again.

    Args:
        out: the folder; missing parents are created.
        kind: of the run, such as "sft".
        config: the settings, all that decide the result.
        identity: what else decides it, by the name that messages call it: the data, the digest of a
            model; texts, arrays, or lists of them.
        resume: whether an existing folder of the same run may be continued.
        discard: removes what changed settings outdate; called with the folder of the state and the
            changes, as in `RunDir`, before run.json states the new settings, so that a run that is
            killed in between is discarded from again.

    Returns:
        The folder.

    Raises:
        InputError: the folder holds something else or another run, it holds the same run and
            `resume` is not set, a setting is not finite, or another process has another identity or
            does not see it.

    Example:
        >>> import numpy as np
        >>> from jaxalign.runs import open_run_dir
        >>> import tempfile
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Config:
        ...     steps: int = 3
        >>> out = tempfile.mkdtemp()
        >>> run = open_run_dir(out, "count", Config(), {"data": np.arange(3)})
        >>> run.stage("sum", lambda: {"total": np.arange(4).sum()})["total"].item()
        6
        >>> run.finish({"total": 6})
        >>> open_run_dir(out, "count", Config(), {"data": np.arange(3)}, resume=True).finished
        True
    """
    out, settings = expand_user(out), asdict(config)
    digests = {name: identity_digest(value) for name, value in (identity or {}).items()}
    check_same(digests, "give all of them the same files")
    marker = {
        "format": 3,
        "kind": kind,
        "version": __version__,
        "fingerprint": _fingerprint(kind, config, digests),
        "config": settings,
        "identity": digests,
    }

    def claim() -> dict[str, str]:
        found = check_run_dir(out, kind, config, resume, digests)
        rules = resume_rules(config)
        unlike = () if found is None else _unlike(found.get("config"), settings)
        changes = {name: _change(old, new) for name, old, new in unlike if name in rules}
        if changes:  # first: a run that is killed here is unfinished, not finished as another
            (out / REPORT).unlink(missing_ok=True)
            discard(out / STATE, changes)
        if found is None or changes:
            write_json(out / MARKER, marker)
        return changes

    changes = on_first_process(claim)
    for number, seen in enumerate(gather_values((out / MARKER).exists())):
        if not seen:
            raise InputError(
                f"process {number} does not see {out / MARKER}, which process 0 has written; "
                "expected a folder that all processes share: give one with --out."
            )
    return RunDir(out, kind, str(marker["fingerprint"]), changes)


def check_run_dir(
    out: Path,
    kind: str,
    config: "DataclassInstance",
    resume: bool,
    digests: Mapping[str, str] | None = None,
) -> dict[str, object] | None:
    """Refuse a folder that `open_run_dir` would refuse, as far as that is known by now.

    Args:
        out: the folder.
        kind: of the run.
        config: its settings.
        resume: whether an existing folder of the same run may be continued.
        digests: of what else decides the result; None as long as that has not been read.

    Returns:
        What the folder's run.json holds; None for a new folder.

    Raises:
        InputError: as `open_run_dir`, or a setting that is not finite.
    """
    _refuse_infinite(asdict(config))
    refuse_foreign(out)
    if not (out / MARKER).exists():
        return None
    found = read_json(out / MARKER, f"the settings of a run of `{kind}`", ANOTHER)
    if found.get("kind") != kind:
        raise InputError(
            f"{out} holds a run of `{found.get('kind')}`; expected one of `{kind}`: {ANOTHER}."
        )
    differences = _differences(found, config, digests)
    if differences:
        listed = "; ".join(differences[:_LISTED])
        more = f"; and {len(differences) - _LISTED} more" if len(differences) > _LISTED else ""
        raise InputError(f"{out} holds another run ({listed}{more}): {ANOTHER}.")
    if not resume:
        state = "a finished run" if (out / REPORT).exists() else "an unfinished run"
        raise InputError(
            f"{out} holds {state} of the same settings: add --resume to go on, or {ANOTHER}."
        )
    return found


def _refuse_infinite(settings: Mapping[str, object]) -> None:
    """Refuse settings that JSON cannot hold, such as an infinite limit."""
    for name, value in setting_leaves(settings).items():
        for number in value if isinstance(value, list | tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise InputError(f"{name}: found {number}, expected a finite number; correct it.")


def refuse_foreign(out: Path) -> None:
    """Refuse an output folder that is in use and holds no run, before any work is done.

    Raises:
        InputError: `out` cannot be written, is a file, or a folder with other things in it.
    """
    check_output(out, "folder")
    if out.exists() and not (out / MARKER).exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty and holds no run: {ANOTHER}.")


def finished_report(folder: str | Path, kind: str, remedy: str) -> dict[str, object]:
    """Return the report of a finished run.

    Args:
        folder: of the run.
        kind: that the run must be of.
        remedy: the command that makes such a run, for messages.

    Raises:
        InputError: the folder holds no run, another kind of run, or an unfinished one.
    """
    folder = expand_user(folder)
    found = read_json(folder / MARKER, f"the folder of a run ({kind})", remedy)
    if found.get("kind") != kind:
        raise InputError(
            f"{folder} holds {recognise(folder)}; expected a run of `{kind}`: {remedy}."
        )
    if not (folder / REPORT).exists():
        raise InputError(
            f"{folder} holds an unfinished run of `{kind}`: finish it with --resume first."
        )
    return read_json(folder / REPORT, "the report of a run", remedy)


def identity_digest(value: Identity) -> str:
    """Return the sha256 of a text, an array, or a list of them, in hexadecimal.

    Example:
        >>> from jaxalign.runs.run_dir import identity_digest
        >>> identity_digest(["a", "b"]) == identity_digest(["ab"])
        False
    """
    digest = hashlib.sha256()
    for part in (value,) if isinstance(value, str | np.ndarray) else value:
        if isinstance(part, str):
            digest.update(f"{len(part)} {part}".encode("utf-8", "surrogatepass"))
        else:
            digest.update(f"{part.dtype} {part.shape}".encode())
            digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def _fingerprint(kind: str, config: "DataclassInstance", digests: Mapping[str, str]) -> str:
    fixed = setting_leaves(asdict(config))
    for name in resume_rules(config):
        fixed.pop(name, None)
    text = json.dumps([kind, __version__, fixed, dict(digests)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _differences(
    found: Mapping[str, object], config: "DataclassInstance", digests: Mapping[str, str] | None
) -> list[str]:
    """Name all that makes another run of it: the version, settings, and what else decides it."""
    if found.get("version") != __version__:
        return [f"made by version {found.get('version')}, this is {__version__}"]
    rules = resume_rules(config)
    named = []
    for name, old, new in _unlike(found.get("config"), asdict(config)):
        if name not in rules:
            named.append(f"{name} {_change(old, new)}")
        elif rules[name] == "more" and not _grows(old, new):
            named.append(f"{name} {_change(old, new)}; a run can only be made longer")
    if digests is None:
        return named
    kept = found.get("identity")
    before = kept if isinstance(kept, dict) else {}
    named += [
        f"not the same {name} as before"
        for name in sorted({*before, *digests})
        if before.get(name) != digests.get(name)
    ]
    return named


def _unlike(old: object, new: object) -> Iterator[tuple[str, object, object]]:
    """The settings that differ: dotted name, old and new value."""
    before, after = setting_leaves(old), setting_leaves(json.loads(json.dumps(new)))
    for name in dict.fromkeys((*after, *before)):
        if before.get(name) != after.get(name):
            yield name, before.get(name), after.get(name)


def _change(old: object, new: object) -> str:
    """What a setting was and is, for messages."""
    before, after = ("empty" if value == "" else value for value in (old, new))
    return f"was {before}, now it is {after}"


def _grows(old: object, new: object) -> bool:
    return isinstance(old, int | float) and isinstance(new, int | float) and new > old


def setting_leaves(value: object, prefix: str = "") -> dict[str, object]:
    """Return nested settings by their dotted names; settings in a list are numbered from 0.

    Example:
        >>> from jaxalign.runs.run_dir import setting_leaves
        >>> setting_leaves({"loop": {"epochs": 3}, "rewards": [{"name": "brevity"}]})
        {'loop.epochs': 3, 'rewards.0.name': 'brevity'}
    """
    if isinstance(value, list | tuple) and any(isinstance(child, dict) for child in value):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {prefix: value}
    leaves: dict[str, object] = {}
    for name, child in value.items():
        leaves |= setting_leaves(child, f"{prefix}.{name}" if prefix else str(name))
    return leaves
