"""The folder of a run: what was trained, from which models and data."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jaxalign.config import load_config
from jaxalign.data import lamp
from jaxalign.errors import InputError
from jaxalign.experiments.pplug.baselines import TRAININGS
from jaxalign.experiments.pplug.config import PPlugRunConfig
from jaxalign.files import expand_user, read_json
from jaxalign.pplug.config import PPlugConfig
from jaxalign.recognise import recognise
from jaxalign.runs.run_dir import MARKER, REPORT

CONFIG, SOURCES = "config.yaml", "sources.json"
PLUGS, PLUG, STORE = "plugs", "plug.safetensors", "history"
KIND = "pplug train"


@dataclass(frozen=True)
class RunSources:
    """The inputs of a run, as in sources.json.

    Attributes:
        model: Name of the language model.
        encoder: Name of the history encoder.
        data: Path of the data.
        task: Name of the task.
        store: Folder of a shared store; None for the run's own.
    """

    model: str
    encoder: str
    data: str
    task: str
    store: str | None


@dataclass(frozen=True)
class TrainingReport:
    """The outcome of one training, as in its report.json.

    Attributes:
        training: Name in `TRAININGS`.
        seed: Its seed.
        parameters: Number of trained parameters.
        steps: Number of optimiser steps.
        best_step: The step of the parameters that were kept.
        validation_before: Validation means before training; empty without validation.
        validation: Validation means at `best_step`; empty without validation.
        config: The settings.
    """

    training: str
    seed: int
    parameters: int
    steps: int
    best_step: int
    validation_before: dict[str, float]
    validation: dict[str, float]
    config: PPlugConfig


class PPlugRun(NamedTuple):
    """A run in which at least one training is finished.

    Attributes:
        folder: Folder of the run.
        fingerprint: Digest of everything that decides its result.
        config: Its config.
        sources: Its inputs.
        plugs: File of each finished plug by (name in `TRAININGS`, seed).
    """

    folder: Path
    fingerprint: str
    config: PPlugRunConfig
    sources: RunSources
    plugs: dict[tuple[str, int], Path]

    @property
    def rules(self) -> lamp.Task:
        """The task."""
        return lamp.task(self.config.data.own_task or self.sources.task)

    @property
    def store(self) -> Path:
        """Folder of the store of the items' vectors."""
        return Path(self.sources.store or self.folder / STORE)


def load_run(folder: str | Path) -> PPlugRun:
    """Read a run and which of its trainings are finished.

    Args:
        folder: The `out` folder of `jaxalign.experiments.pplug.run`.

    Raises:
        InputError: The folder holds no run, one of an older format, or no finished training.
    """
    folder = expand_user(folder)
    remedy = "train it with `jaxalign pplug train`"
    marker = read_json(folder / MARKER, "the folder of a PPlug run", remedy)
    if marker.get("kind") != KIND or marker.get("format") != 3:
        raise InputError(
            f"{folder} holds {recognise(folder)} (format {marker.get('format')}); expected a run "
            f"of `{KIND}`, format 3: {remedy}."
        )
    plugs = {}
    for path in sorted((folder / PLUGS).glob(f"*/{REPORT}")):
        report = load_config(TrainingReport, path, [])
        if report.training not in TRAININGS:
            raise InputError(
                f"{path}: `training` is {report.training!r}; expected one of "
                f"{', '.join(TRAININGS)}: {remedy}."
            )
        plugs[report.training, report.seed] = path.parent / PLUG
    if not plugs:
        raise InputError(
            f"{folder} holds no trained plug: go on with `jaxalign pplug train` and --resume."
        )
    order = list(TRAININGS)
    return PPlugRun(
        folder,
        str(marker.get("fingerprint")),
        load_config(PPlugRunConfig, folder / CONFIG, []),
        load_config(RunSources, folder / SOURCES, []),
        dict(sorted(plugs.items(), key=lambda pair: (order.index(pair[0][0]), pair[0]))),
    )
