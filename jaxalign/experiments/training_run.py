"""What every training of a language model does before and after it: folder, devices and model."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jax.sharding import Mesh

from jaxalign.config import resume_rules
from jaxalign.files import expand_user
from jaxalign.models.device_defaults import device_defaults
from jaxalign.models.language import LanguageModel, load_language_model
from jaxalign.models.resolve import ResolvedModel
from jaxalign.progress import Progress
from jaxalign.runs.log import Tracker, check_trackers
from jaxalign.runs.processes import check_same, on_first_process
from jaxalign.runs.run_dir import (
    Identity,
    RunDir,
    check_run_dir,
    open_run_dir,
    setting_leaves,
)
from jaxalign.train.mesh import DeviceReport, MeshConfig, device_report, make_mesh, param_shardings
from jaxalign.train.optimiser import OptimiserConfig, longer_run_note

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True)
class TrainingRun:
    """A training whose folder has been looked at, and whose devices are chosen.

    Attributes:
        out: folder of the run.
        kind: of the run, such as "sft".
        config: its settings.
        resume: whether an existing folder of the same run may be continued.
        progress: where progress is shown.
        mesh: its devices.
    """

    out: Path
    kind: str
    config: "DataclassInstance"
    resume: bool
    progress: Progress
    mesh: Mesh

    @property
    def devices(self) -> DeviceReport:
        """What the report says of the devices."""
        return device_report(self.mesh)

    def load_model(
        self,
        name: str,
        dtype: str,
        unstack_layers: bool | None = None,
        resolved: ResolvedModel | None = None,
    ) -> LanguageModel:
        """Load a language model onto the devices; arguments and errors as `load_language_model`.

        Parameters that are cut over several devices stay stacked by default: the scan gathers them
        layer by layer.
        """
        if unstack_layers is None:
            unstack_layers = self.mesh.size == 1 and device_defaults().unstack_to_train
        shardings = partial(param_shardings, mesh=self.mesh)
        return load_language_model(
            name, dtype, shardings, unstack_layers=unstack_layers, resolved=resolved
        )

    def open(self, identity: Mapping[str, Identity], optimiser: OptimiserConfig) -> RunDir:
        """Open the run's folder, and say what a resumed run has changed.

        Args:
            identity: what decides the result beside the settings, as in `open_run_dir`.
            optimiser: of the training, for what a longer run means to its schedule.

        Raises:
            InputError: as `open_run_dir`.
        """
        run = open_run_dir(self.out, self.kind, self.config, identity, self.resume)
        rules = resume_rules(self.config)
        for name, change in run.changes.items():
            self.progress.say(f"{name} {change}")
        if any(rules[name] == "more" for name in run.changes):
            self.progress.say(longer_run_note(optimiser))
        return run


def start_training(
    out: str | Path,
    kind: str,
    config: "DataclassInstance",
    mesh: MeshConfig,
    trackers: Sequence[Tracker],
    resume: bool,
    show: bool,
) -> TrainingRun:
    """Refuse a folder that cannot be used, before anything is loaded, and choose the devices.

    Args:
        out: folder of the run.
        kind: of the run.
        config: its settings.
        mesh: sizes of the mesh.
        trackers: experiment trackers that the metrics are sent to.
        resume: whether an existing folder of the same run may be continued.
        show: progress on standard error.

    Raises:
        InputError: the folder holds something else or another run, the mesh does not fit the
            devices, a tracker's package is not installed, or another process has other settings.
    """
    out, progress = expand_user(out), Progress(show)
    started = {"the command": kind, "--resume": resume, **setting_leaves(asdict(config))}
    check_same(started, "start every process with the same settings")
    on_first_process(lambda: bool(check_run_dir(out, kind, config, resume)))
    on_first_process(lambda: check_trackers(trackers))
    run = TrainingRun(out, kind, config, resume, progress, make_mesh(mesh))
    found = run.devices
    axes = ", ".join(f"{axis} {size}" for axis, size in found["mesh"].items())
    progress.say(f"{found['count']} x {found['kind']} ({found['platform']}), mesh {axes}")
    return run
