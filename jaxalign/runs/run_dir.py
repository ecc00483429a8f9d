"""The folder of a run: which run it holds, its stages, and whether the run is finished.

`run.json` names the run, `state/` holds what a resumed run reads back, and `report.json` is
written last of all: a folder without it holds an unfinished run.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxalign.errors import InputError
from jaxalign.files import check_output, read_json, write_json
from jaxalign.runs.artifact import Arrays, Tree, load_arrays, save_arrays, unflatten
from jaxalign.version import __version__

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MARKER, REPORT, STATE = "run.json", "report.json", "state"
ANOTHER = "give a new folder with --out"


@dataclass(frozen=True)
class RunDir:
    """The folder of one run.

    Attributes:
        path: of the folder.
        kind: of the run, such as "mrm train".
        fingerprint: sha256 over all that decides the result, in hexadecimal.
    """

    path: Path
    kind: str
    fingerprint: str

    @property
    def finished(self) -> bool:
        """Whether the run has written its report, and so everything before it."""
        return (self.path / REPORT).exists()

    @property
    def state(self) -> Path:
        """Folder of what a resumed run reads back; created when first asked for."""
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
        if path.exists():
            say(f"{name}: kept from before")
        else:
            say(name)
            save_arrays(path, compute())
        return unflatten(load_arrays(path))

    def finish(self, report: Mapping[str, object]) -> None:
        """Write report.json, which marks the run as finished: call it after every other file.

        Args:
            report: what `json.dumps` takes, without NaN.
        """
        write_json(self.path / REPORT, report)


def open_run_dir(
    out: str | Path,
    kind: str,
    config: "DataclassInstance",
    arrays: Iterable[np.ndarray] = (),
    names: Iterable[str] = (),
    resume: bool = False,
) -> RunDir:
    """Open a new folder for a run, or the folder of the same run to resume it.

    Args:
        out: the folder; missing parents are created.
        kind: of the run, such as "sft".
        config: the settings, all that decide the result.
        arrays: the data, all that decide the result.
        names: what else decides it, such as the digest of a model.
        resume: whether an existing folder of the same run may be continued.

    Returns:
        The folder.

    Raises:
        InputError: the folder holds something else or another run, or it holds the same run and
            `resume` is not set.

    Example:
        >>> import numpy as np
        >>> from jaxalign.runs import open_run_dir
        >>> import tempfile
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Config:
        ...     steps: int = 3
        >>> out = tempfile.mkdtemp()
        >>> run = open_run_dir(out, "count", Config())
        >>> run.stage("sum", lambda: {"total": np.arange(4).sum()})["total"].item()
        6
        >>> run.finish({"total": 6})
        >>> open_run_dir(out, "count", Config(), resume=True).finished
        True
    """
    out = Path(out).expanduser()
    settings = asdict(config)
    text = json.dumps([kind, __version__, settings, list(names)], sort_keys=True)
    digest = hashlib.sha256(text.encode())
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    run = RunDir(out, kind, digest.hexdigest())
    marker = out / MARKER
    if marker.exists():
        _refuse_other(
            run, read_json(marker, f"the settings of a run of `{kind}`", ANOTHER), settings, resume
        )
        return run
    refuse_foreign(out)
    write_json(
        marker,
        {
            "format": 2,
            "kind": kind,
            "version": __version__,
            "fingerprint": run.fingerprint,
            "config": settings,
        },
    )
    return run


def refuse_foreign(out: Path) -> None:
    """Refuse an output folder that is in use and holds no run, before any work is done.

    Raises:
        InputError: `out` cannot be written, is a file, or a folder with other things in it.
    """
    check_output(out, "folder")
    if out.exists() and not (out / MARKER).exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty and holds no run: give a new folder with --out.")


def finished_report(folder: str | Path, kind: str, remedy: str) -> dict[str, object]:
    """Return the report of a finished run.

    Args:
        folder: of the run.
        kind: that the run must be of.
        remedy: the command that makes such a run, for messages.

    Raises:
        InputError: the folder holds no run, another kind of run, or an unfinished one.
    """
    folder = Path(folder).expanduser()
    found = read_json(folder / MARKER, f"the folder of a run ({kind})", remedy)
    if found.get("kind") != kind:
        raise InputError(
            f"{folder} holds a run of `{found.get('kind')}`; expected one of `{kind}`: {remedy}."
        )
    if not (folder / REPORT).exists():
        raise InputError(f"{folder} holds an unfinished run: finish it with --resume first.")
    return read_json(folder / REPORT, "the report of a run", remedy)


def _refuse_other(
    run: RunDir, found: dict[str, object], settings: dict[str, object], resume: bool
) -> None:
    if found.get("kind") != run.kind:
        raise InputError(
            f"{run.path} holds a run of `{found.get('kind')}`; expected one of `{run.kind}`: give "
            "a new folder with --out."
        )
    if found.get("fingerprint") != run.fingerprint:
        raise InputError(
            f"{run.path} holds another run ({_difference(found, settings)}): give a new folder "
            "with --out."
        )
    if not resume:
        state = "a finished run" if run.finished else "an unfinished run"
        raise InputError(
            f"{run.path} holds {state} of the same settings: add --resume to go on, or give a new "
            "folder with --out."
        )


def _difference(found: dict[str, object], settings: object) -> str:
    """Name what differs: the version, the first setting, or else the data."""
    if found.get("version") != __version__:
        return f"made by version {found.get('version')}, this is {__version__}"
    old, new = _leaves(found.get("config")), _leaves(json.loads(json.dumps(settings)))
    for name in (*new, *old):
        if old.get(name) != new.get(name):
            return f"{name} was {old.get(name)}, now it is {new.get(name)}"
    return "other data or another model, with the same settings"


def _leaves(value: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(value, dict):
        return {prefix: value}
    leaves: dict[str, object] = {}
    for name, child in value.items():
        leaves |= _leaves(child, f"{prefix}.{name}" if prefix else str(name))
    return leaves
