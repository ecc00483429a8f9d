"""The folder of a training run: whose it is, and whether it may go on."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.errors import InputError
from jaxalign.train.files import write_json
from jaxalign.version import __version__


def claim(
    out: Path,
    kind: str,
    config: Any,
    arrays: Iterable[np.ndarray],
    names: Iterable[str],
    resume: bool,
) -> None:
    """Make a folder this run's, or refuse another run's.

    Args:
        out: the folder; made where it is missing.
        kind: of the run, such as `sft`.
        config: a dataclass.
        arrays: the data, all that decides the result.
        names: what else does, such as the model's hash.
        resume: whether an unfinished run of the same kind may go on.

    Raises:
        InputError: the folder holds something else, or the same run and `resume` is not set.
    """
    settings = json.dumps([kind, __version__, asdict(config), list(names)], sort_keys=True)
    digest = hashlib.sha256(settings.encode())
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    mine = {
        "format": 1,
        "kind": kind,
        "version": __version__,
        "fingerprint": digest.hexdigest(),
        "config": asdict(config),
    }
    marker = out / "run.json"
    if marker.exists():
        _refuse_other(out, json.loads(marker.read_text("utf-8")), mine, resume)
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not empty and holds no run: give a new folder with --out.")
    out.mkdir(parents=True, exist_ok=True)
    write_json(marker, mine)


def _refuse_other(out: Path, theirs: dict[str, Any], mine: dict[str, Any], resume: bool) -> None:
    if theirs.get("fingerprint") != mine["fingerprint"]:
        raise InputError(
            f"{out} holds another run (other data, model or settings): give a new folder with "
            "--out."
        )
    if not resume:
        state = "a finished run" if (out / "report.json").exists() else "an unfinished run"
        raise InputError(
            f"{out} holds {state} of the same settings: add --resume to go on, or give a new "
            "folder."
        )
